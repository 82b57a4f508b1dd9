/** A mask that is painted: 0 and 1 for each pixel of an image, with its strokes to take back. */

export interface Box {
  x: number
  y: number
  width: number
  height: number
}

const KEPT = 20

/** Masks whose saving failed after their image was left, by image: they are shown again when it is opened. */
export const rescued = new Map<number, Sheet>()

export class Sheet {
  /** Grows when a stroke ends; what draws the whole mask waits for it. */
  revision = $state(0)
  unsaved = $state(false)
  data: Uint8Array
  private past = $state.raw<Uint8Array[]>([])
  readonly canUndo = $derived.by(() => this.past.length > 0)

  constructor(
    readonly width: number,
    readonly height: number,
    data?: Uint8Array,
  ) {
    this.data = data ?? new Uint8Array(width * height)
  }

  get painted(): number {
    return this.data.reduce((sum, value) => sum + value, 0)
  }

  begin() {
    this.past = [...this.past.slice(1 - KEPT), this.data.slice()]
  }

  end() {
    this.unsaved = true
    this.revision++
  }

  /** Takes back a stroke that has begun and is none: a mask that was saved stays so. */
  abandon() {
    this.data = this.past.at(-1) ?? this.data
    this.past = this.past.slice(0, -1)
    this.revision++
  }

  undo() {
    const before = this.past.at(-1)
    if (!before) return
    this.past = this.past.slice(0, -1)
    this.data = before
    this.end()
  }

  /** The whole mask anew, for example from a contour. */
  replace(data: Uint8Array) {
    this.begin()
    this.data = data
    this.end()
  }

  /** Discs along the way from one point to another; a pixel is painted where its centre lies within the radius. */
  stroke(x0: number, y0: number, x1: number, y1: number, radius: number, value: 0 | 1): Box {
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(0.5, radius / 3)))
    for (let i = 0; i <= steps; i++) {
      this.disc(x0 + ((x1 - x0) * i) / steps, y0 + ((y1 - y0) * i) / steps, radius, value)
    }
    const x = Math.max(0, Math.floor(Math.min(x0, x1) - radius))
    const y = Math.max(0, Math.floor(Math.min(y0, y1) - radius))
    return {
      x,
      y,
      width: Math.min(this.width, Math.ceil(Math.max(x0, x1) + radius)) - x,
      height: Math.min(this.height, Math.ceil(Math.max(y0, y1) + radius)) - y,
    }
  }

  private disc(cx: number, cy: number, radius: number, value: 0 | 1) {
    for (let y = Math.max(0, Math.floor(cy - radius)); y < Math.min(this.height, cy + radius); y++) {
      for (let x = Math.max(0, Math.floor(cx - radius)); x < Math.min(this.width, cx + radius); x++) {
        // The pixel under the pointer is always hit, however small the brush.
        const under = x === Math.floor(cx) && y === Math.floor(cy)
        if (under || (x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= radius ** 2) this.data[y * this.width + x] = value
      }
    }
  }
}

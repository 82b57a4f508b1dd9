/** Where a map crosses a threshold, as the path of an SVG: marching squares on pixel centres. */

/**
 * Segments of the line `values = level`, linear between pixel centres, joined to the path data of an SVG.
 *
 * Pixel (column, row) has its centre at (column + 0.5, row + 0.5). The map is taken to end at its outermost centres, so
 * that a region at the border is closed along it: outside counts as lower than any level.
 */
export function contour(values: ArrayLike<number>, width: number, height: number, level: number): string {
  const parts: string[] = []
  const at = (x: number, y: number) => (x < 0 || y < 0 || x >= width || y >= height ? -Infinity : values[y * width + x])
  const place = (a: number, b: number) => (a === -Infinity ? 1 : b === -Infinity ? 0 : (level - a) / (b - a))
  const show = (x: number, y: number) => `${(x + 0.5).toFixed(2)} ${(y + 0.5).toFixed(2)}`
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const a = at(x, y)
      const b = at(x + 1, y)
      const c = at(x + 1, y + 1)
      const d = at(x, y + 1)
      const kind = (a >= level ? 8 : 0) | (b >= level ? 4 : 0) | (c >= level ? 2 : 0) | (d >= level ? 1 : 0)
      if (kind === 0 || kind === 15) continue
      const top = () => show(x + place(a, b), y)
      const right = () => show(x + 1, y + place(b, c))
      const bottom = () => show(x + place(d, c), y + 1)
      const left = () => show(x, y + place(a, d))
      const line = (p: string, q: string) => parts.push(`M${p}L${q}`)
      if (kind === 1 || kind === 14) line(left(), bottom())
      else if (kind === 2 || kind === 13) line(bottom(), right())
      else if (kind === 3 || kind === 12) line(left(), right())
      else if (kind === 4 || kind === 11) line(top(), right())
      else if (kind === 6 || kind === 9) line(top(), bottom())
      else if (kind === 7 || kind === 8) line(left(), top())
      else {
        // A saddle: the mean of the four corners says which two are joined.
        const joined = (a + b + c + d) / 4 >= level
        const bends = (kind === 5) === joined ? [left, top, bottom, right] : [left, bottom, top, right]
        line(bends[0](), bends[1]())
        line(bends[2](), bends[3]())
      }
    }
  }
  return parts.join('')
}

/** How many values reach the level. */
export function reached(values: ArrayLike<number>, level: number): number {
  let count = 0
  for (let i = 0; i < values.length; i++) if (values[i] >= level) count++
  return count
}

/** The Dice overlap of a mask with what reaches the level: 1 where they are the same, 0 where they do not touch. */
export function dice(values: ArrayLike<number>, mask: ArrayLike<number>, level: number): number {
  let both = 0
  let sum = 0
  for (let i = 0; i < values.length; i++) {
    const inside = values[i] >= level
    if (inside && mask[i]) both++
    if (inside) sum++
    if (mask[i]) sum++
  }
  return sum === 0 ? 1 : (2 * both) / sum
}

/** A label map as a NIfTI file with the geometry of its image, and back. NIfTI-1 only, which is what the server sends. */

const HEADER = 348
const DATA = 352

export async function unpacked(file: ArrayBuffer): Promise<ArrayBuffer> {
  const start = new Uint8Array(file, 0, 2)
  if (start[0] !== 0x1f || start[1] !== 0x8b) return file
  return new Response(new Blob([file]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer()
}

function opened(file: ArrayBuffer) {
  const view = new DataView(file)
  const little = view.getInt32(0, true) === HEADER
  if (!little && view.getInt32(0, false) !== HEADER) throw new Error('The server sent a volume that is no NIfTI-1 file.')
  const sides = [1, 2, 3].map((axis) => view.getInt16(40 + 2 * axis, little))
  return { view, little, sides }
}

/** The labels of a uint8 label map in the order of its file, first axis fastest. */
export async function labels(file: ArrayBuffer): Promise<Uint8Array> {
  const data = await unpacked(file)
  const { view, little, sides } = opened(data)
  if (view.getInt16(70, little) !== 2) throw new Error('The mask of this volume is no label map of 8 bits.')
  return new Uint8Array(data, view.getFloat32(108, little), sides[0] * sides[1] * sides[2])
}

/** A gzipped uint8 label map; image: the unpacked file whose header says where voxels lie. */
export async function labelMap(image: ArrayBuffer, values: Uint8Array): Promise<Blob> {
  const { little, sides } = opened(image)
  if (values.length !== sides[0] * sides[1] * sides[2]) throw new Error('The mask is not of the size of its volume.')
  const file = new Uint8Array(DATA + values.length)
  file.set(new Uint8Array(image, 0, HEADER))
  file.set(values, DATA)
  const view = new DataView(file.buffer)
  view.setInt16(40, 3, little)
  for (let axis = 4; axis < 8; axis++) view.setInt16(40 + 2 * axis, 1, little)
  view.setInt16(70, 2, little) // uint8
  view.setInt16(72, 8, little) // bits
  view.setFloat32(108, DATA, little)
  view.setFloat32(112, 1, little) // slope
  view.setFloat32(116, 0, little) // intercept
  view.setFloat32(124, 1, little) // cal_max
  view.setFloat32(128, 0, little) // cal_min
  return new Response(new Blob([file]).stream().pipeThrough(new CompressionStream('gzip'))).blob()
}

/** A mask as an 8-bit grey PNG of 0 and 255 and back; a canvas would write RGBA. */

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1
  return n
})

function checksum(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8)
  return (crc ^ 0xffffffff) >>> 0
}

function chunk(name: string, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(data.length + 12)
  const view = new DataView(out.buffer)
  view.setUint32(0, data.length)
  for (let i = 0; i < 4; i++) out[4 + i] = name.charCodeAt(i)
  out.set(data, 8)
  view.setUint32(data.length + 8, checksum(out.subarray(4, data.length + 8)))
  return out
}

/** mask: width x height values, of which those above 0 become 255. */
export async function encode(mask: Uint8Array, width: number, height: number): Promise<Blob> {
  const rows = new Uint8Array((width + 1) * height)
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) rows[y * (width + 1) + 1 + x] = mask[y * width + x] ? 255 : 0
  }
  const packed = new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream('deflate')))
  const header = new Uint8Array(13)
  const view = new DataView(header.buffer)
  view.setUint32(0, width)
  view.setUint32(4, height)
  header[8] = 8 // bits; colour type 0 is grey
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10)
  const data = chunk('IDAT', new Uint8Array(await packed.arrayBuffer()))
  return new Blob([signature, chunk('IHDR', header), data, chunk('IEND', new Uint8Array())], { type: 'image/png' })
}

/** The pixels of a picture from the server, RGBA at its own size. */
export async function decode(address: string): Promise<ImageData> {
  const picture = new Image()
  picture.src = address
  await picture.decode()
  const canvas = document.createElement('canvas')
  canvas.width = picture.naturalWidth
  canvas.height = picture.naturalHeight
  const context = canvas.getContext('2d', { willReadFrequently: true })!
  context.drawImage(picture, 0, 0)
  return context.getImageData(0, 0, canvas.width, canvas.height)
}

/** Maps as colours: viridis, as every other picture of madclip has it, and the range that one map is shown over. */

const VIRIDIS =
  'RAFURAJVRANXRQVYRQZaRQhbRglcRgteRgxfRg5hRw9iRxFjRxJlRxRmRxVnRxZpRxhqSBlrSBpsSBxuSB1vSB5wSCBxSCFySCJzSCN0RyV1RyZ2' +
  'Ryd3Ryh4Ryp5Ryt6Ryx7Ri18Ri98RjB9RjF+RTJ/RTR/RTWARTaBRDeBRDmCQzqDQzuDQzyEQj2EQj6FQkCFQUGGQUKGQEOHQESHP0WHP0eIPkiI' +
  'PkmJPUqJPUuJPUyJPE2KPE6KO1CKO1GKOlKLOlOLOVSLOVWLOFaLOFeMN1iMN1mMNlqMNluMNVyMNV2MNF6NNF+NM2CNM2GNMmKNMmONMWSNMWWN' +
  'MWaNMGeNMGiNL2mNL2qNLmuOLmyOLm2OLW6OLW+OLHCOLHGOLHKOK3OOK3SOKnWOKnaOKneOKXiOKXmOKHqOKHqOKHuOJ3yOJ32OJ36OJn+OJoCO' +
  'JoGOJYKOJYONJISNJIWNJIaNI4eNI4iNI4mNIomNIoqNIouNIYyNIY2MIY6MII+MIJCMIJGMH5KMH5OLH5SLH5WLH5aLHpeKHpiKHpmKHpmKHpqJ' +
  'HpuJHpyJHp2IHp6IHp+IHqCHH6GHH6KGH6OGIKSFIKWFIaaFIaeEIqeEI6iDI6mCJKqCJauBJqyBJ62AKK5/Ka9/KrB+K7F9LLF9LrJ8L7N7MLR6' +
  'MrV6M7Z5Nbd4Nrh3OLl2Obl2O7p1Pbt0PrxzQL1yQr5xRL5wRb9vR8BuScFtS8JsTcJrT8NpUcRoU8VnVcZmV8ZlWcdkW8hiXslhYMlgYspfZMtd' +
  'Z8xcacxba81Zbc5YcM5Wcs9VdNBUd9BSedFRfNJPftJOgdNMg9NLhtRJiNVHi9VGjdZEkNZDktdBldc/l9g+mtg8ndk6n9k4oto3pdo1p9szqtsy' +
  'rdwwr9wust0std0rt90put4nvd4mv98kwt8ixd8hx+AfyuAezeAdz+Ec0uEb1OEa1+IZ2uIY3OIY3+MY4eMY5OMY5+QZ6eQZ7OQa7uUb8eUc8+Ue' +
  '9uYf+OYh+uYi/eck'

/** 256 colours of three bytes, from dark blue to yellow. */
export const COLOURS = Uint8Array.from(atob(VIRIDIS), (character) => character.charCodeAt(0))

/**
 * Where the colours of one map begin and end: its median and its largest value. Maps of few-shot detectors are seldom
 * calibrated, so each is shown over its own range: compare scores between images, not colours.
 */
export function span(values: Float32Array): [number, number] {
  const sorted = Float32Array.from(values).sort()
  return [sorted[sorted.length >> 1], sorted[sorted.length - 1]]
}

/** RGBA of a map: transparent at `low` and below, opaque and yellow at `high`. */
export function heat(values: Float32Array, low: number, high: number): Uint8ClampedArray<ArrayBuffer> {
  const out = new Uint8ClampedArray(values.length * 4)
  const scale = 1 / Math.max(high - low, 1e-9)
  for (let i = 0; i < values.length; i++) {
    const value = Math.min(Math.max((values[i] - low) * scale, 0), 1)
    const colour = 3 * Math.min(255, Math.floor(value * 256))
    out[4 * i] = COLOURS[colour]
    out[4 * i + 1] = COLOURS[colour + 1]
    out[4 * i + 2] = COLOURS[colour + 2]
    out[4 * i + 3] = Math.round(255 * Math.min(1, value * 1.5))
  }
  return out
}

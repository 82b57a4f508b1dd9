/** Numbers and times as people read them. */

export const percent = (part: number, whole: number) => (whole ? `${Math.round((100 * part) / whole)} %` : '–')

export const fixed = (value: number | null | undefined, digits = 2) =>
  value === null || value === undefined ? '–' : value.toFixed(digits)

export const many = (count: number, one: string, more = `${one}s`) =>
  `${count.toLocaleString('en')} ${count === 1 ? one : more}`

export function bytes(count: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB']
  let unit = 0
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000
    unit++
  }
  return `${count < 10 && unit > 0 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`
}

export function duration(seconds: number): string {
  if (seconds < 1.5) return 'a second'
  if (seconds < 90) return many(Math.round(seconds), 'second')
  return `${many(Math.round(seconds / 60), 'minute')}`
}

export const when = (iso: string) =>
  new Date(iso).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' })

const STAGES: Record<string, string> = {
  encode: 'Reading images',
  fit: 'Learning',
  'out-of-fold': 'Testing on images that it has not seen',
  predict: 'Scoring all images',
  evaluate: 'Evaluating',
  export: 'Exporting',
}

/** What a job does, in words. */
export const stage = (name: string) => STAGES[name] ?? (name || 'Waiting')

const SEEN: Record<string, string> = { tiny: 'drawn images', lite0: 'photographs' }

/** A backbone by its name, and what it learned from where that is known. */
export function backboneName(name: string): string {
  const seen = name.split('+').map((tower) => SEEN[tower])
  return seen.every(Boolean) ? `${name}: learned from ${seen.join(' and ')}` : name
}

/** What a detector notes of an image, in the words of this page: elsewhere labelled images are called shots. */
export const plain = (note: string) => note.replace('every shot', 'every labelled image').replace('the shots', 'the labelled images')

/** The last part of a path, which is what tells images apart. */
export const short = (name: string) => name.split('/').pop() || name

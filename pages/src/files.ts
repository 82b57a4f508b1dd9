/** Files that were dropped or chosen, folders with what they hold, and their way to the server in batches. */

import { api } from './api'
import { store } from './store.svelte'
import { many } from './words'

const BATCH_FILES = 16
const BATCH_BYTES = 64e6

async function inside(entry: FileSystemEntry): Promise<File[]> {
  if (entry.isFile) return [await new Promise<File>((take, fail) => (entry as FileSystemFileEntry).file(take, fail))]
  const reader = (entry as FileSystemDirectoryEntry).createReader()
  const files: File[] = []
  for (;;) {
    // A call gives at most a hundred or so, and none once there are no more.
    const some = await new Promise<FileSystemEntry[]>((take, fail) => reader.readEntries(take, fail))
    if (some.length === 0) return files
    for (const one of some) files.push(...(await inside(one)))
  }
}

/** Everything that was dropped; entries are taken at once, since the browser forgets them after the event. */
export async function dropped(given: DataTransfer): Promise<File[]> {
  const entries = [...given.items].flatMap((item) => item.webkitGetAsEntry() ?? [])
  return (await Promise.all(entries.map(inside))).flat()
}

function* batches(files: File[]) {
  let batch: File[] = []
  let size = 0
  for (const file of files) {
    if (batch.length && (batch.length >= BATCH_FILES || size + file.size > BATCH_BYTES)) {
      yield batch
      batch = []
      size = 0
    }
    batch.push(file)
    size += file.size
  }
  if (batch.length) yield batch
}

/** Sends files, and says how many have come in and which were refused. */
export async function upload(files: File[], progress: (done: number) => void = () => {}) {
  const wanted = files.filter((file) => !file.name.startsWith('.'))
  const refused: { name: string; error: string }[] = []
  const before = store.project!.counts.images
  let images = 0
  let done = 0
  try {
    for (const batch of batches(wanted)) {
      const said = await api.upload(batch)
      images += said.images.length
      refused.push(...said.refused)
      progress((done += batch.length))
    }
  } catch (error) {
    store.fail(error)
  }
  await Promise.all([store.refreshProject(), store.load(), store.follow()]).catch((error) => store.fail(error))
  const added = Math.max(0, store.project!.counts.images - before)
  const known = images > added ? `${images - added} here already` : ''
  if (images) store.say([added || !known ? `${many(added, 'image')} added` : 'Nothing new', known].filter(Boolean).join(', ') + '.')
  return refused
}

/**
 * Small pictures a few at a time, in the order in which they came into view. A browser opens six connections to a server;
 * were all of them waiting for thumbnails that are still to be made, a click would wait with them.
 */
const MOST = 4

let waiting: { image: HTMLImageElement; src: string }[] = []
const loading = new Set<HTMLImageElement>()

function next() {
  while (loading.size < MOST && waiting.length) {
    const { image, src } = waiting.shift()!
    loading.add(image)
    image.src = src
  }
}

function drop(image: HTMLImageElement) {
  waiting = waiting.filter((one) => one.image !== image)
  loading.delete(image)
}

/** Gives an image its picture when it is its turn; what leaves the page waits no more. */
export function queued(image: HTMLImageElement, src: string) {
  const done = () => {
    drop(image)
    next()
  }
  const ask = (wanted: string) => {
    drop(image)
    waiting.push({ image, src: wanted })
    next()
  }
  image.addEventListener('load', done)
  image.addEventListener('error', done)
  ask(src)
  return {
    update: ask,
    destroy() {
      if (loading.has(image)) image.removeAttribute('src') // the connection is free again
      done()
    },
  }
}

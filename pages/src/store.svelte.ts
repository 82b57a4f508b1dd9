/** What the pages know of the project: one instance, `store`, that every page reads. */

import { api, Refused, type Detector, type Job, type Label, type Picture, type Project, type Query } from './api'
import { many, short } from './words'

/** Images that one call lists. */
const PAGE = 1000

interface Notice {
  id: number
  text: string
  kind: 'said' | 'warning'
}

interface Step {
  before: { id: number; label: Label | null }[]
}

const terminal = (job: Job) => job.state === 'done' || job.state === 'failed' || job.state === 'cancelled'

class Store {
  project = $state.raw<Project | null>(null)
  /** Images in the order of the query; holes are not loaded yet. */
  list = $state.raw<(Picture | undefined)[]>([])
  query = $state.raw<Query>({ sort: 'next', order: 'asc', label: 'any', verdict: 'any' })
  loading = $state(true)
  /** The image that keys mean, an index of `list`, and those that are selected, by id. */
  focus = $state(0)
  selected = $state.raw<ReadonlySet<number>>(new Set())
  detectors = $state.raw<Detector[]>([])
  /** The latest fit or refit, its losses so far, and any other job that runs. */
  training = $state.raw<Job | null>(null)
  losses = $state.raw<number[]>([])
  working = $state.raw<Job | null>(null)
  /** The latest such job, where it failed. */
  failed = $state.raw<Job | null>(null)
  /** What the server does by itself. */
  background = $state.raw<Job | null>(null)
  /** Whether labels or scores have come since the images were put in order. */
  stale = $state(false)
  notices = $state.raw<Notice[]>([])
  /** Grows when scores may have changed, so that pages ask for maps and curves again. */
  epoch = $state(0)
  needsLogin = $state(false)
  unreachable = $state(false)
  /** Score of the heatmap at which the contour is drawn; kept from image to image. */
  level = $state<number | null>(null)
  opacity = $state(0.6)

  readonly canUndo = $derived.by(() => this.steps.length > 0)
  readonly detector = $derived(this.detectors.find((one) => one.active) ?? null)
  /** Whether training goes on from the detector in use: where it learned from both kinds, with what is chosen now. */
  readonly goesOn = $derived.by(() => {
    const [{ detector }, project] = [this, this.project]
    if (!detector || !project || detector.abnormal === 0 || project.counts.abnormal === 0) return false
    return detector.backbone === project.backbone && detector.objective === project.objective
  })

  private steps = $state.raw<Step[]>([])
  /** How many labels were given. */
  private given = 0
  private queue: Promise<void> = Promise.resolve()
  private asked = 0
  private followed = new Set<number>()
  private noticed = 0

  say(text: string, kind: Notice['kind'] = 'said') {
    const id = ++this.noticed
    this.notices = [...this.notices.filter((one) => one.text !== text), { id, text, kind }].slice(-3)
    setTimeout(() => this.dismiss(id), kind === 'warning' ? 12000 : 5000)
  }

  dismiss(id: number) {
    this.notices = this.notices.filter((one) => one.id !== id)
  }

  /** Shows why a call failed; false where the error is none of the server's. */
  fail(error: unknown) {
    if (!(error instanceof Refused)) throw error
    if (error.status === 401) this.needsLogin = true
    else if (error.status === 0) this.unreachable = true
    else this.say(error.message, 'warning')
  }

  async start() {
    try {
      await Promise.all([this.refreshProject(), this.refreshDetectors()])
      this.unreachable = this.needsLogin = false
      await this.load()
      const jobs = await this.follow()
      // What failed while nobody looked is said when somebody looks again.
      const last = jobs.filter((one) => one.kind === 'fit' || one.kind === 'refit').toSorted((a, b) => b.id - a.id)[0]
      if (last?.state === 'failed') this.training = last
    } catch (error) {
      this.loading = false
      this.fail(error)
    }
  }

  /** What the server says of the project; an answer that labels given meanwhile are not in is asked for again. */
  async refreshProject() {
    for (;;) {
      await this.settled()
      const given = this.given
      const said = await api.project()
      if (given !== this.given) continue
      this.project = said
      return
    }
  }

  /** What may have happened meanwhile, by another browser or while this page slept. */
  async catchUp() {
    if (!this.project) return
    const before = this.project.detector
    try {
      await Promise.all([this.refreshProject(), this.refreshDetectors(), this.follow()])
      if (this.project.detector === before) return
      await this.refresh()
      this.epoch++
    } catch (error) {
      this.fail(error)
    }
  }

  async refreshDetectors() {
    this.detectors = await api.detectors()
  }

  /** Lists the images of the query; what was shown stays until the first of them have come. */
  async load(query: Query = this.query, keep?: number) {
    const turn = ++this.asked
    this.query = query
    this.loading = true
    this.stale = false
    try {
      let list: (Picture | undefined)[] = []
      let offset = 0
      do {
        const said = await api.images(query, offset, PAGE)
        if (turn !== this.asked) return
        if (offset === 0) {
          list = new Array<undefined>(said.total)
          const place = keep === undefined ? -1 : said.images.findIndex((one) => one.id === keep)
          this.focus = Math.max(place, 0)
        }
        for (let i = 0; i < said.images.length; i++) list[offset + i] = said.images[i]
        this.list = list.slice()
        this.loading = false
        if (said.images.length === 0) break
        offset += said.images.length
      } while (offset < list.length)
    } catch (error) {
      if (turn === this.asked) this.fail(error)
    } finally {
      if (turn === this.asked) this.loading = false
    }
  }

  /** Scores anew, in the order that is shown, since nothing may move under the hands of who labels. */
  private async refresh() {
    const known = new Set(this.list.map((one) => one?.id))
    for (let offset = 0; ; offset += PAGE) {
      const said = await api.images({ ...this.query, sort: 'name', order: 'asc' }, offset, PAGE)
      if (said.images.some((one) => !known.has(one.id))) return this.load(this.query, this.list[this.focus]?.id)
      this.take(said.images.map((one) => ({ ...one, label: this.find(one.id)?.label ?? one.label })))
      if (said.images.length === 0 || offset + said.images.length >= said.total) break
    }
    this.stale = true
  }

  indexOf(id: number) {
    return this.list.findIndex((one) => one?.id === id)
  }

  find(id: number) {
    return this.list.find((one) => one?.id === id)
  }

  /** Asks anew after an image whose thumbnail did not come: it may turn out that it cannot be read. */
  async look(id: number) {
    try {
      this.take([await api.image(id)])
    } catch (error) {
      this.fail(error)
    }
  }

  /** Puts what the server says of images in the place of what is shown. */
  take(images: Picture[]) {
    const byId = new Map(images.map((one) => [one.id, one]))
    this.list = this.list.map((one) => (one && byId.has(one.id) ? { ...one, ...byId.get(one.id)! } : one))
  }

  private count(from: Label | null, to: Label | null) {
    if (!this.project) return
    const counts = { ...this.project.counts }
    counts[from ?? 'unlabelled']--
    counts[to ?? 'unlabelled']++
    this.project = { ...this.project, counts }
  }

  /** Labels images: shown at once, then sent in the order in which they were given. */
  label(images: Picture[], label: Label | null, remember = true) {
    const broken = images.find((one) => one.error)
    if (broken && label) this.say(`${short(broken.name)} cannot be read, so it gets no label.`, 'warning')
    const changed = images.filter((one) => one.label !== label && !(one.error && label))
    if (changed.length === 0) return
    if (remember) this.steps = [...this.steps.slice(-99), { before: changed.map(({ id, label }) => ({ id, label })) }]
    this.given++
    for (const one of changed) this.count(one.label, label)
    this.stale = true
    this.take(changed.map((one) => ({ ...one, label })))
    const ids = changed.map((one) => one.id)
    const before = changed[0]
    this.enqueue(() => (ids.length === 1 ? this.sendOne(before, label) : this.sendMany(ids, label)))
  }

  private async sendOne(before: Picture, label: Label | null) {
    try {
      const now = this.find(before.id) ?? before
      this.take([this.keepingLabel(await api.label(before.id, label, now.version))])
    } catch (error) {
      if (error instanceof Refused && error.status === 409 && error.body.image) {
        const theirs = error.body.image
        this.count(this.find(theirs.id)?.label ?? label, theirs.label)
        this.take([theirs])
        const said = theirs.label === null ? 'took its label away' : `called it ${theirs.label}`
        this.say(`${short(theirs.name)}: another browser ${said} in the meantime. That is shown now.`, 'warning')
        return
      }
      this.count(label, before.label)
      this.take([{ ...(this.find(before.id) ?? before), label: before.label }])
      this.fail(error)
    }
  }

  private async sendMany(ids: number[], label: Label | null) {
    try {
      const said = await api.labels(ids, label)
      this.take(said.images.map((one) => this.keepingLabel(one)))
    } catch (error) {
      this.fail(error)
      await this.load(this.query)
      this.project = await api.project() // not by refreshProject, which waits for the queue that this is part of
    }
  }

  /** An answer may be older than the label that was given since: the version is new, the shown label stays. */
  private keepingLabel(said: Picture): Picture {
    const shown = this.find(said.id)
    return { ...said, label: shown ? shown.label : said.label, next: said.next ?? shown?.next ?? null }
  }

  /** Takes the latest labelling back; gives the first image that it concerned. */
  async undo(): Promise<number | null> {
    const step = this.steps.at(-1)
    if (!step) return null
    this.steps = this.steps.slice(0, -1)
    try {
      for (const label of ['normal', 'abnormal', null] as const) {
        const ids = step.before.filter((one) => one.label === label).map((one) => one.id)
        this.label(await Promise.all(ids.map((id) => this.find(id) ?? api.image(id))), label, false)
      }
    } catch (error) {
      this.fail(error)
    }
    return step.before[0].id
  }

  private enqueue(work: () => Promise<void>) {
    this.queue = this.queue.then(work).catch((error) => this.fail(error))
    return this.queue
  }

  /** Until every label that was given has reached the server. */
  settled() {
    return this.queue
  }

  async remove(ids: number[]) {
    await this.settled()
    let gone = 0
    try {
      for (const id of ids) {
        await api.remove(id)
        gone++
      }
      this.say(`${many(gone, 'image')} deleted.`)
    } catch (error) {
      this.fail(error)
    }
    const next = this.list[Math.min(this.focus + 1, this.list.length - 1)]?.id
    this.selected = new Set()
    await Promise.all([this.refreshProject(), this.load(this.query, next)])
  }

  /** Learns: on from the detector in use, where that is one of what is chosen, without folds unless these are wanted anew. */
  async train(changes: Record<string, number>, operatingPoint: string, folds: number, anew: boolean) {
    await this.settled()
    try {
      const kind = this.goesOn && Object.keys(changes).length === 0 ? 'refit' : 'fit'
      this.losses = []
      const kept = this.detector?.threshold != null && this.detector.operating_point === operatingPoint
      const parts = kind === 'refit' && kept && !anew ? 0 : folds
      const job = await api.start(kind, { changes, operating_point: operatingPoint, folds: parts })
      this.watch(job)
    } catch (error) {
      this.fail(error)
    }
  }

  async run(kind: 'predict' | 'evaluate' | 'export', parameters: Record<string, unknown> = {}) {
    this.failed = null
    try {
      this.watch(await api.start(kind, parameters))
    } catch (error) {
      this.fail(error)
    }
  }

  async cancel(job: Job) {
    try {
      this.see(await api.cancel(job.id))
    } catch (error) {
      this.fail(error)
    }
  }

  /** Follows what runs, also what the server started by itself because images came or a detector was chosen. */
  async follow() {
    const jobs = await api.jobs()
    for (const job of jobs) if (!terminal(job)) this.watch(job)
    return jobs
  }

  /** Follows a job by its events, and asks itself where those break off. */
  private watch(job: Job) {
    if (this.followed.has(job.id)) return
    this.followed.add(job.id)
    this.see(job)
    if (terminal(job)) return
    const events = new EventSource(`v1/jobs/${job.id}/events`)
    const told = (said: Job) => {
      this.see(said)
      if (terminal(said)) {
        events.close()
        void this.finished(said)
      }
    }
    events.onmessage = (event) => told(JSON.parse(event.data))
    events.onerror = async () => {
      // The stream ends with the job, and a browser would open it again for ever.
      try {
        const said = await api.job(job.id)
        if (terminal(said) && events.readyState !== EventSource.CLOSED) told(said)
      } catch (error) {
        events.close()
        this.fail(error)
      }
    }
  }

  private see(job: Job) {
    if (job.kind === 'fit' || job.kind === 'refit') {
      this.training = job
      // The losses of the detector itself; those that are out of fold start anew each time.
      if (job.stage === 'fit' && job.loss !== null && job.loss !== this.losses.at(-1)) this.losses = [...this.losses, job.loss]
    } else if (job.background) this.background = terminal(job) ? null : job
    else this.working = terminal(job) ? null : job
  }

  private async finished(job: Job) {
    const learned = job.kind === 'fit' || job.kind === 'refit'
    if (job.state === 'failed') this.say(job.error ?? `The ${job.kind} failed.`, 'warning')
    if (job.state === 'failed' && !learned && !job.background) this.failed = job
    try {
      await Promise.all([this.refreshProject(), this.refreshDetectors()])
      if (job.background) await this.refresh()
      else if (job.state === 'done' && job.kind !== 'export') await this.load(this.query, this.list[this.focus]?.id)
      this.epoch++ // now that the list holds what is new
      if (learned && job.state === 'done' && route.page !== 'train') this.say('Trained: scores and heatmaps are those of the new detector.')
    } catch (error) {
      this.fail(error)
    }
  }

  async activate(id: number) {
    try {
      await api.activate(id)
      await Promise.all([this.refreshProject(), this.refreshDetectors(), this.follow()])
      this.epoch++
      await this.load(this.query)
    } catch (error) {
      this.fail(error)
    }
  }

  async removeDetector(id: number) {
    try {
      await api.removeDetector(id)
      await Promise.all([this.refreshProject(), this.refreshDetectors()])
      this.epoch++
      await this.load(this.query)
    } catch (error) {
      this.fail(error)
    }
  }
}

export const store = new Store()

/** The page that the address names: `#/images`, `#/image/7`, `#/volume/3`, `#/train`, `#/results`. */
class Route {
  page = $state('images')
  id = $state<number | null>(null)

  constructor() {
    const read = () => {
      const [, page, id] = location.hash.split('/')
      this.page = page || 'images'
      this.id = id ? Number(id) : null
    }
    read()
    addEventListener('hashchange', read)
  }
}

export const route = new Route()

/** Whether a key belongs to the field or button that has the focus, or to the browser, rather than to the page. */
export function typing(event: KeyboardEvent): boolean {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return true
  const { key } = event
  const target = event.target as HTMLElement
  if (target.matches('input[type="range"]')) return /^(Arrow|Page|Home|End)/.test(key)
  if (target.matches('input[type="checkbox"]')) return key === ' '
  if (target.matches('button, summary')) return key === 'Enter' || key === ' '
  if (target.matches('a')) return key === 'Enter' && !target.hasAttribute('aria-current')
  return target.matches('input, textarea, select')
}

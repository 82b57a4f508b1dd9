/** The server's REST interface: its types, and one function for each call. Addresses are relative to the page. */

export type Label = 'normal' | 'abnormal'
export type Verdict = 'normal' | 'anomalous' | 'uncertain'
export type Sort = 'next' | 'score' | 'uncertainty' | 'similarity' | 'name'

export interface Row {
  score: number | null
  threshold: number | null
  decision: 'normal' | 'anomalous' | null
  probability: number | null
  p_value: number | null
  verdict: Verdict | null
  familiar: boolean | null
  note: string
  error: string | null
}

export interface Picture {
  id: number
  name: string
  width: number | null
  height: number | null
  label: Label | null
  mask: boolean
  version: number
  volume: number | null
  frame: number | null
  axis: string | null
  /** Which slice of its volume it is, from 0. */
  place: number
  slices: number
  row: Row | null
  next: { rank: number; reason: string } | null
  error: string | null
}

export interface Project {
  name: string
  objective: string
  backbone: string
  backbones: string[]
  read_only: boolean
  counts: { images: number; normal: number; abnormal: number; unlabelled: number; masks: number }
  detector: number | null
  disk: { tokens: number; tokens_limit: number; thumbnails: number }
  research_use: string
}

export type JobKind = 'fit' | 'refit' | 'predict' | 'evaluate' | 'export'

export interface Job {
  id: number
  kind: JobKind
  state: 'queued' | 'running' | 'done' | 'failed' | 'cancelled'
  stage: string
  done: number
  total: number
  loss: number | null
  seconds_left: number | null
  error: string | null
  made: string
  detector: number | null
  result: Record<string, unknown> | null
  /** Started by the server itself, for example to score what was just added. */
  background: boolean
}

export interface Detector {
  id: number
  made: string
  backbone: string
  objective: string
  normal: number
  abnormal: number
  masks: number
  out_of_fold: { auroc: number; low: number; high: number } | null
  threshold: number | null
  operating_point: string
  uncalibrated: string
  changed: string
  active: boolean
  seconds: number
  /** The mean terms of the loss in each round over the images; the loss is their sum. */
  history: Record<string, number>[]
  exports: string[]
}

export interface Wrong {
  image: Picture
  score: number
  said: 'normal' | 'anomalous'
  label: Label
}

export interface Curve {
  normal: number[]
  abnormal: number[]
  threshold: number | null
}

export interface Query {
  sort: Sort
  to?: number
  order?: 'asc' | 'desc'
  label: 'any' | 'none' | Label
  verdict: 'any' | Verdict
}

/** What the server refused and why; status 0 where it did not answer at all. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly body: { image?: Picture } = {},
  ) {
    super(message)
  }
}

async function ask(method: string, path: string, body?: BodyInit, headers: Record<string, string> = {}): Promise<Response> {
  const changes = method !== 'GET'
  let answer: Response
  try {
    answer = await fetch(path, { method, body, headers: changes ? { 'X-Madclip': '1', ...headers } : headers })
  } catch {
    throw new Refused(0, 'The server does not answer. Is madclip serve still running?')
  }
  if (answer.ok) return answer
  const said = await answer.json().catch(() => ({}))
  throw new Refused(answer.status, said.error?.message ?? `The server answered ${answer.status}.`, said)
}

async function json<T>(method: string, path: string, body?: unknown): Promise<T> {
  const given = body === undefined ? undefined : JSON.stringify(body)
  const answer = await ask(method, path, given, given ? { 'Content-Type': 'application/json' } : {})
  return answer.status === 204 ? (undefined as T) : answer.json()
}

/** A float32 raster with its shape, and the stored values of black and white where the server names them. */
export interface Raster {
  values: Float32Array
  width: number
  height: number
  range: [number, number]
}

async function raster(path: string): Promise<Raster> {
  const answer = await ask('GET', path)
  const [height, width] = (answer.headers.get('X-Shape') ?? '').split(',').map(Number)
  const range = answer.headers.get('X-Range')?.split(',').map(Number) ?? [0, 1]
  const values = new Float32Array(await answer.arrayBuffer())
  if (values.length !== width * height) throw new Refused(500, `${path} came with the wrong length.`)
  return { values, width, height, range: [range[0], range[1]] }
}

const image = (id: number) => `v1/images/${id}`

export const address = {
  thumbnail: (id: number) => `${image(id)}/thumbnail.jpg`,
  picture: (id: number) => `${image(id)}/picture.png`,
  overlay: (id: number, threshold?: number) =>
    `${image(id)}/overlay.png${threshold === undefined ? '' : `?threshold=${threshold}`}`,
  mask: (id: number) => `${image(id)}/mask.png`,
  volume: (id: number, what: 'image' | 'heatmap' | 'mask', stretch: number) =>
    `v1/volumes/${id}/${what}.nii.gz?stretch=${stretch}`,
  results: 'v1/results.csv',
  manifest: 'v1/manifest.csv',
  report: 'v1/report.html',
  folder: (id: number) => `v1/detectors/${id}/folder.zip`,
}

export const api = {
  login: (token: string) => json<void>('POST', 'v1/session', { token }),
  project: () => json<Project>('GET', 'v1/project'),
  change: (given: { objective?: string; backbone?: string; tokens_limit?: number }) => json<Project>('PATCH', 'v1/project', given),
  openFolder: (path: string) =>
    json<{ added: number; passed_over: Record<string, number>; images: number }>('POST', 'v1/folders', { path }),
  async upload(files: File[]) {
    const form = new FormData()
    for (const file of files) form.append('files', file, file.name)
    const answer = await ask('POST', 'v1/uploads', form)
    return (await answer.json()) as { images: Picture[]; refused: { name: string; error: string }[] }
  },
  async readLabels(file: File) {
    const answer = await ask('POST', address.manifest, file, { 'Content-Type': 'text/csv' })
    return (await answer.json()) as { labelled: number; masks: number; unknown: string[] | number }
  },
  images: (query: Query, offset: number, limit: number) => {
    const asked = new URLSearchParams({ sort: query.sort, label: query.label, offset: `${offset}`, limit: `${limit}` })
    if (query.verdict !== 'any') asked.set('verdict', query.verdict)
    if (query.to !== undefined) asked.set('to', `${query.to}`)
    if (query.order) asked.set('order', query.order)
    return json<{ total: number; offset: number; images: Picture[] }>('GET', `v1/images?${asked}`)
  },
  image: (id: number) => json<Picture>('GET', image(id)),
  remove: (id: number) => json<void>('DELETE', image(id)),
  label: (id: number, label: Label | null, version: number) =>
    json<Picture>('PUT', `${image(id)}/label`, { label, version }),
  labels: (ids: number[], label: Label | null) => json<{ images: Picture[] }>('POST', 'v1/labels', { ids, label }),
  pixels: (id: number) => raster(`${image(id)}/pixels`),
  map: (id: number) => raster(`${image(id)}/map`),
  async saveMask(id: number, version: number, png: Blob) {
    const answer = await ask('PUT', address.mask(id), png, { 'Content-Type': 'image/png', 'If-Match': `${version}` })
    return (await answer.json()) as Picture
  },
  async removeMask(id: number, version: number) {
    const answer = await ask('DELETE', address.mask(id), undefined, { 'If-Match': `${version}` })
    return answer.status === 204 ? api.image(id) : ((await answer.json()) as Picture)
  },
  /** Slices of each stretch of evenly spaced ones. */
  stretches: async (id: number) => (await json<{ stretches: number[] }>('GET', `v1/volumes/${id}`)).stretches,
  async volumeFile(id: number, what: 'image' | 'heatmap' | 'mask', stretch: number) {
    return (await ask('GET', address.volume(id, what, stretch))).arrayBuffer()
  },
  saveVolumeMask: (id: number, file: Blob, stretch: number) =>
    ask('PUT', address.volume(id, 'mask', stretch), file, { 'Content-Type': 'application/gzip' }),
  jobs: async () => (await json<{ jobs: Job[] }>('GET', 'v1/jobs')).jobs,
  job: (id: number) => json<Job>('GET', `v1/jobs/${id}`),
  start: (kind: JobKind, parameters: Record<string, unknown> = {}) =>
    json<Job>('POST', 'v1/jobs', { kind, parameters }),
  cancel: (id: number) => json<Job>('DELETE', `v1/jobs/${id}`),
  detectors: async () => (await json<{ detectors: Detector[] }>('GET', 'v1/detectors')).detectors,
  activate: (id: number) => json<Detector>('POST', `v1/detectors/${id}/activate`),
  removeDetector: (id: number) => json<void>('DELETE', `v1/detectors/${id}`),
  wrong: async (id: number) => (await json<{ images: Wrong[] }>('GET', `v1/detectors/${id}/wrong`)).images,
  curve: (id: number) => json<Curve>('GET', `v1/detectors/${id}/curve`),
}

/** In the place of the decoders of Zarr, which NiiVue can open and these pages never do; they would be 1.4 MB more. */
export default class Unused {
  static fromConfig(): never {
    throw new Error('Zarr is not read here.')
  }
}

import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'

// Relative addresses, so that the pages also work below a folder of a reverse proxy; nothing inline, since the server's
// content security policy forbids it; no polyfill, which would be an inline script.
export default defineConfig({
  base: './',
  plugins: [svelte()],
  resolve: { alias: [{ find: /^numcodecs\/.*/, replacement: '/src/unused.ts' }] },
  build: {
    outDir: '../src/madclip/serve/pages',
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    license: { fileName: 'LICENSES.md' },
    target: 'es2022',
    chunkSizeWarningLimit: 3000,
  },
})

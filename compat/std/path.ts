/**
 * Stand-in for `@std/path` where JSR cannot be reached: the functions of `node:path` that the project uses, with
 * `@std/path`'s names. Map the import to `jsr:@std/path@^1` to use the real package.
 *
 * @module
 */
export {
  basename,
  dirname,
  extname,
  isAbsolute,
  join,
  normalize,
  relative,
  resolve,
} from "node:path";
export {
  fileURLToPath as fromFileUrl,
  pathToFileURL as toFileUrl,
} from "node:url";

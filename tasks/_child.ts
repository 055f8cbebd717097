/**
 * What programs that are started find in their environment.
 *
 * @module
 */

/**
 * Empties the variables by which the dynamic loader is told of other libraries: with one of them set, as CUDA's own
 * instructions advise, Deno starts no program under permissions that name programs. What needs a library beyond the
 * loader's own folders (cuBLASLt in a Python environment) is told by `ldconfig`.
 */
export const CHILD_ENV: Readonly<Record<string, string>> = Object.fromEntries(
  [
    ...["LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "LD_RUN_PATH"],
    ...["LD_BIND_NOW", "LD_DEBUG", "LD_ORIGIN_PATH", "LD_PROFILE"],
    ...["DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"],
    ...["DYLD_INSERT_LIBRARIES"],
  ].map((name) => [name, ""]),
);

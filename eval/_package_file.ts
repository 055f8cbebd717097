/**
 * Files inside npm packages.
 *
 * @module
 */

/**
 * Address of a file of an npm package, by its short path `node_modules/<package>/...`.
 *
 * `import.meta.resolve` gives the path inside `node_modules/.deno/<package>@<version>`. Permissions are matched with
 * the path as it is written, and a list in deno.json should not name versions.
 *
 * @param resolved What `import.meta.resolve` gave.
 */
export function packageFile(resolved: string): URL {
  return new URL(
    resolved.replace(
      /\/node_modules\/\.deno\/[^/]+\/node_modules\//,
      "/node_modules/",
    ),
  );
}

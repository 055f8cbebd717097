/** What would be published: a rehearsal with all of the registry's checks, which needs no network. */
import { stripVTControlCharacters } from "node:util";
import { assert, assertEquals } from "@std/assert";
import { toFileUrl } from "@std/path";
import config from "../../deno.json" with { type: "json" };
import { deno, ROOT } from "./_kvf.ts";

/** Folders whose files are published; what lies at the top is listed by name. */
const FOLDERS = [
  ...["cli", "compat", "csrc", "eval", "ffi", "methods", "models", "tasks"],
];
const FILES = [
  ...["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"],
  ...["deno.json", "deno.lock", "mod.ts"],
];

Deno.test("deno publish --dry-run is clean, and lists every export and nothing that only developers need", async () => {
  const { code, err } = await deno("publish", "--dry-run", "--allow-dirty");
  assertEquals(code, 0, err);
  const text = stripVTControlCharacters(err);
  const root = `${toFileUrl(ROOT).href}/`;
  const listed = text.split("\n").flatMap((line) => {
    const path = /^\s*(file:\S+) \(/.exec(line)?.[1];
    return path === undefined ? [] : [path.slice(root.length)];
  });
  for (const path of Object.values(config.exports)) {
    assert(listed.includes(path.slice(2)), `${path} is not published`);
  }
  const folders = new Set(
    listed.filter((path) => path.includes("/"))
      .map((path) => path.split("/")[0]!),
  );
  assertEquals([...folders].sort(), FOLDERS);
  assertEquals(listed.filter((path) => !path.includes("/")).sort(), FILES);
  // The quickstart's model comes along, how it was trained does not.
  assert(listed.includes("models/needle-6m/model.safetensors"));
  assertEquals(listed.filter((path) => path.startsWith("models/train/")), []);
  // Nothing is unknown before a run but the imports of users' own files: plans, methods, scripts in the sandbox.
  const warnings = text.split(/^(?=warning\[)/m).slice(1);
  assertEquals(
    warnings.map((warning) => /--> \S*\/(\S+?):/.exec(warning)?.[1]).sort(),
    ["_sandboxed.ts", "plan.ts", "registry.ts"],
  );
  for (const warning of warnings) {
    assert(warning.includes("[unanalyzable-dynamic-import]"), warning);
  }
});

/** Where results come from: the state of the sources, permissions, the facts of a run. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { fromFileUrl } from "@std/path";
import {
  grantedPermissions,
  runMeta,
  shortCommit,
  sourceState,
} from "../../eval/provenance/mod.ts";
import { readIndex } from "../../eval/provenance/_git_index.ts";
import { parseRunMeta } from "../../eval/records/mod.ts";
import { Device } from "../../ffi/mod.ts";

const BUILD = fromFileUrl(new URL("../../build", import.meta.url));
const COMMIT = "0123456789abcdef0123456789abcdef01234567";

/** An index of version 2 as git writes it. */
function index(files: Record<string, string>): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder();
  const parts: Uint8Array[] = [];
  for (const [path, text] of Object.entries(files)) {
    const name = encoder.encode(path);
    const entry = new Uint8Array(Math.ceil((62 + name.length + 1) / 8) * 8);
    const view = new DataView(entry.buffer);
    view.setUint32(24, 0o100644);
    view.setUint32(36, text.length);
    const blob = createHash("sha1").update(`blob ${text.length}\0${text}`);
    entry.set(blob.digest(), 40);
    view.setUint16(60, name.length);
    entry.set(name, 62);
    parts.push(entry);
  }
  const size = parts.reduce((sum, part) => sum + part.length, 12);
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 0x44495243);
  view.setUint32(4, 2);
  view.setUint32(8, parts.length);
  let at = 12;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** A checkout with two files. */
function checkout(): string {
  const root = Deno.makeTempDirSync({ dir: BUILD });
  const files = { "eval/a.ts": "one\n", "docs/long/name.md": "two\n" };
  for (const [path, text] of Object.entries(files)) {
    Deno.mkdirSync(`${root}/${path.replace(/\/[^/]*$/, "")}`, {
      recursive: true,
    });
    Deno.writeTextFileSync(`${root}/${path}`, text);
  }
  Deno.mkdirSync(`${root}/.git/refs/heads`, { recursive: true });
  Deno.writeTextFileSync(`${root}/.git/HEAD`, "ref: refs/heads/main\n");
  Deno.writeTextFileSync(`${root}/.git/refs/heads/main`, `${COMMIT}\n`);
  Deno.writeFileSync(`${root}/.git/index`, index(files));
  return root;
}

Deno.test("sourceState tells a changed checkout from its commit", () => {
  const root = checkout();
  assertEquals(sourceState(root), { commit: COMMIT, dirty: false });
  Deno.writeTextFileSync(
    `${root}/docs/long/name.md`,
    "no result depends on it",
  );
  assertEquals(sourceState(root), { commit: COMMIT, dirty: false });
  Deno.writeTextFileSync(`${root}/eval/a.ts`, "ONE\n");
  const changed = sourceState(root);
  assertEquals(changed.dirty, true);
  assert(changed.commit.startsWith(`${COMMIT}+`));
  assertEquals(
    shortCommit(changed.commit),
    COMMIT.slice(0, 12) + changed.commit.slice(40),
  );
  assertEquals(shortCommit("0.3.0+unknown"), "0.3.0+unknown");
  Deno.writeTextFileSync(`${root}/eval/a.ts`, "TWO\n");
  assert(sourceState(root).commit !== changed.commit);
  Deno.removeSync(`${root}/eval/a.ts`);
  assert(sourceState(root).dirty);
  Deno.writeTextFileSync(`${root}/eval/a.ts`, "one\n");
  assertEquals(sourceState(root), { commit: COMMIT, dirty: false });
  Deno.removeSync(root, { recursive: true });
});

Deno.test("sourceState reads packed references, linked working trees and bare heads", () => {
  const root = checkout();
  Deno.removeSync(`${root}/.git/refs/heads/main`);
  Deno.writeTextFileSync(
    `${root}/.git/packed-refs`,
    `# pack-refs with: peeled\n${
      "f".repeat(40)
    } refs/heads/other/main\n${COMMIT} refs/heads/main\n`,
  );
  assertEquals(sourceState(root).commit, COMMIT);
  const linked = `${root}/linked`;
  Deno.mkdirSync(`${linked}/eval`, { recursive: true });
  Deno.mkdirSync(`${linked}/docs/long`, { recursive: true });
  Deno.writeTextFileSync(`${linked}/eval/a.ts`, "one\n");
  Deno.writeTextFileSync(`${linked}/docs/long/name.md`, "two\n");
  const own = `${root}/.git/worktrees/linked`;
  Deno.mkdirSync(own, { recursive: true });
  Deno.writeTextFileSync(`${linked}/.git`, `gitdir: ${own}\n`);
  Deno.writeTextFileSync(`${own}/commondir`, "../..\n");
  Deno.writeTextFileSync(`${own}/HEAD`, "ref: refs/heads/main\n");
  Deno.copyFileSync(`${root}/.git/index`, `${own}/index`);
  assertEquals(sourceState(linked), { commit: COMMIT, dirty: false });
  Deno.writeTextFileSync(`${root}/.git/HEAD`, `${"a".repeat(40)}\n`);
  assertEquals(sourceState(root).commit, "a".repeat(40));
  Deno.removeSync(root, { recursive: true });
});

Deno.test("sourceState says what it cannot tell", () => {
  const root = checkout();
  Deno.writeFileSync(`${root}/.git/index`, new Uint8Array(20));
  assertEquals(sourceState(root), { commit: COMMIT, dirty: null });
  Deno.removeSync(`${root}/.git`, { recursive: true });
  const { commit, dirty } = sourceState(root);
  assert(commit.endsWith("+unknown"));
  assertEquals(dirty, null);
  Deno.removeSync(root, { recursive: true });
  assertThrows(() => readIndex(new Uint8Array(20)), RangeError, "version is 0");
});

Deno.test({
  name: "runMeta fits its schema and lists permissions as granted",
  permissions: {
    read: "inherit",
    ffi: "inherit",
    sys: ["systemMemoryInfo"],
    write: [BUILD],
  },
  fn: () => {
    using device = new Device();
    const permissions = grantedPermissions({
      write: [BUILD, "/"],
      env: ["HOME"],
      ffi: [device.path],
      sys: ["systemMemoryInfo", "hostname"],
    });
    assertEquals(permissions.filter((one) => !one.startsWith("read")), [
      `write=${BUILD}`,
      `ffi=${device.path}`,
      "run=none",
      "env=none",
      "sys=systemMemoryInfo",
      "net=none",
    ]);
    const meta = runMeta({
      device,
      shard: { index: 2, count: 3 },
      source: { commit: COMMIT, dirty: null },
      permissions,
      options: { budget: [64] },
      hashes: { model: "0".repeat(64) },
    });
    assertEquals(parseRunMeta(meta), meta);
    assertEquals(meta.shard, "2/3");
    assert(meta.hardware.memoryBytes! > 0);
    assert(/^[0-9a-f]{64}$/.test(meta.hashes.library!));
    assertEquals(meta.versions.deno, Deno.version.deno);
  },
});

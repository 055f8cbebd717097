/** `kvf sandbox` against scripts that mean harm: each attempt must be refused, and the folders stay as they were. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { CHILD_ENV } from "../../tasks/_child.ts";
import { kvf, ROOT } from "./_kvf.ts";

const sandbox = (script: string, ...args: string[]) =>
  kvf("sandbox", script, ...args);

/** A temporary place with a secret beside the folders that the script gets. */
function place(): { root: string; out: string } & Disposable {
  const root = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  for (const name of ["out", "data", "home"]) Deno.mkdirSync(`${root}/${name}`);
  Deno.writeTextFileSync(`${root}/home/secret.json`, '{"key":"SECRET"}');
  Deno.writeTextFileSync(
    `${root}/home/secret.ts`,
    'export default "SECRET";',
  );
  Deno.writeTextFileSync(`${root}/data/given.txt`, "given");
  return {
    root,
    out: `${root}/out`,
    [Symbol.dispose]: () => Deno.removeSync(root, { recursive: true }),
  };
}

/** Bodies of async functions; `HOME` is a folder that was not given, `OUT` and `DATA` were. None may succeed. */
const ATTEMPTS: Record<string, string> = {
  "reads a file elsewhere":
    "return Deno.readTextFileSync(HOME + '/secret.json')",
  "reads through ..":
    "return Deno.readTextFileSync(OUT + '/../home/secret.json')",
  "reads through node:fs":
    "return (await import('node:fs')).readFileSync(HOME + '/secret.json', 'utf8')",
  "lists a folder elsewhere": "return [...Deno.readDirSync(HOME)].length",
  "asks whether a file exists":
    "return Deno.statSync(HOME + '/secret.json').size",
  "opens a file elsewhere": "return Deno.openSync(HOME + '/secret.json')",
  "fetches a file address":
    "return await (await fetch('file://' + HOME + '/secret.json')).text()",
  "reads the keys of the machine": "return Deno.readDirSync('/etc/ssh').next()",
  "reads the process's environment through /proc":
    "return Deno.readTextFileSync('/proc/self/environ')",
  "reads its own memory map": "return Deno.readTextFileSync('/proc/self/maps')",
  "imports JSON from elsewhere":
    "const p = 'file://' + HOME + '/secret.json'; return (await import(p, { with: { type: 'json' } })).default",
  "imports a module from elsewhere":
    "const p = 'file://' + HOME + '/secret.ts'; return (await import(p)).default",
  "imports through a data address":
    "return (await import('data:text/javascript,' + encodeURIComponent('export { default } from \"file://' + HOME + '/secret.json\" with { type: \"json\" }'))).default",
  "imports through a blob":
    "return (await import(URL.createObjectURL(new Blob(['export { default } from \"file://' + HOME + '/secret.json\" with { type: \"json\" }'], { type: 'text/javascript' })))).default",
  "imports through a module it wrote":
    "Deno.writeTextFileSync(OUT + '/m.ts', 'export { default } from \"file://' + HOME + '/secret.json\" with { type: \"json\" }'); const p = 'file://' + OUT + '/m.ts'; return (await import(p)).default",
  "starts a worker with a module it wrote":
    "Deno.writeTextFileSync(OUT + '/w.ts', 'import s from \"file://' + HOME + '/secret.json\" with { type: \"json\" }; postMessage(s)'); const w = new Worker('file://' + OUT + '/w.ts', { type: 'module' }); return await new Promise((yes, no) => { w.onmessage = (e) => yes(e.data); w.onerror = (e) => { e.preventDefault(); w.terminate(); no(new Error(e.message)) } })",
  "writes elsewhere":
    "Deno.writeTextFileSync(HOME + '/new.txt', 'x'); return 'written'",
  "writes into the data":
    "Deno.writeTextFileSync(DATA + '/given.txt', 'x'); return 'written'",
  "writes through ..":
    "Deno.writeTextFileSync(OUT + '/../home/new.txt', 'x'); return 'written'",
  "writes into the toolkit":
    "Deno.writeTextFileSync(PROJECT + '/methods/snapkv.ts', 'x'); return 'written'",
  "removes the data":
    "Deno.removeSync(DATA, { recursive: true }); return 'removed'",
  "renames a file out of its folder":
    "Deno.writeTextFileSync(OUT + '/a', 'x'); Deno.renameSync(OUT + '/a', HOME + '/a'); return 'renamed'",
  "links to a file elsewhere":
    "Deno.symlinkSync(HOME + '/secret.json', OUT + '/link'); return Deno.readTextFileSync(OUT + '/link')",
  "hard-links a file elsewhere":
    "Deno.linkSync(HOME + '/secret.json', OUT + '/hard'); return Deno.readTextFileSync(OUT + '/hard')",
  "connects": "return await Deno.connect({ hostname: '127.0.0.1', port: 9 })",
  "fetches": "return await fetch('http://127.0.0.1:9/')",
  "listens": "return Deno.listen({ port: 0 })",
  "resolves a name": "return await Deno.resolveDns('example.com', 'A')",
  "opens a web socket":
    "return await new Promise((yes, no) => { try { const s = new WebSocket('ws://127.0.0.1:9'); s.onopen = yes; s.onerror = (e) => no(new Error('Requires net access ' + e.message)) } catch (e) { no(e) } })",
  "connects through node:net":
    "const net = await import('node:net'); return await new Promise((yes, no) => { try { net.connect(9, '127.0.0.1').on('connect', yes).on('error', no) } catch (e) { no(e) } })",
  "imports over the network":
    "const p = 'http://127.0.0.1:9/x.ts'; return await import(p)",
  "carries a secret out in an import":
    "const p = 'https://esm.sh/x?secret=1'; return await import(p)",
  "imports a package that is not here":
    "const p = 'npm:is-odd@3.0.1'; return await import(p)",
  "reads the environment": "return Deno.env.get('HOME') ?? Deno.env.toObject()",
  "reads the environment through node":
    "const v = (await import('node:process')).default.env.HOME; if (v === undefined) throw new Error('Requires env access'); return v",
  "starts a program": "return new Deno.Command('cc').outputSync().code",
  "starts Deno":
    "return new Deno.Command('deno', { args: ['eval', '1'] }).outputSync().code",
  "starts a program through node":
    "return (await import('node:child_process')).execFileSync('/bin/true')",
  "loads another library":
    "return Deno.dlopen('/lib/x86_64-linux-gnu/libc.so.6', {})",
  "loads a library it wrote":
    "Deno.writeFileSync(OUT + '/evil.so', Deno.readFileSync(PROJECT + '/build/libkvf.so')); return Deno.dlopen(OUT + '/evil.so', {})",
  "loads a native addon":
    "const m = (await import('node:module')).createRequire('file://' + OUT + '/'); Deno.writeTextFileSync(OUT + '/a.node', 'x'); return m(OUT + '/a.node')",
  "reads raw memory":
    "return new Deno.UnsafePointerView(Deno.UnsafePointer.create(4096n)).getUint8()",
  "calls a function of the C library through the library it may load":
    "const lib = Deno.dlopen(PROJECT + '/build/libkvf.so', { system: { parameters: ['buffer'], result: 'i32' } }); return lib.symbols.system(new TextEncoder().encode('touch ' + HOME + '/pwned\\0'))",
  "does so in a worker of its own":
    "const w = new Worker('data:text/javascript,' + encodeURIComponent('try { Deno.dlopen(' + JSON.stringify(PROJECT + '/build/libkvf.so') + ', { getpid: { parameters: [], result: \"i32\" } }); postMessage(\"\") } catch (e) { postMessage(e.message) }'), { type: 'module' }); const m = await new Promise((yes) => { w.onmessage = (e) => { w.terminate(); yes(e.data) } }); if (m) throw new Error(m); return 'opened'",
  "does so through a file that it swaps for another":
    "Deno.renameSync(PROJECT + '/build/libkvf.so', OUT + '/lib.so'); return 'renamed'",
  "reads its own memory": "return Deno.openSync('/proc/self/mem')",
  "reads what other programs left open":
    "return [...Deno.readDirSync('/dev/fd')].length",
  "reads through the root of a process":
    "return Deno.readTextFileSync('/proc/self/root/etc/hostname')",
  "copies a file into its folder":
    "Deno.copyFileSync(HOME + '/secret.json', OUT + '/copy.json'); return Deno.readTextFileSync(OUT + '/copy.json')",
  "links through node, relative":
    "(await import('node:fs')).symlinkSync('../home/secret.json', OUT + '/rel'); return Deno.readTextFileSync(OUT + '/rel')",
  "takes its folder away and puts a link there":
    "Deno.mkdirSync(OUT + '/d'); Deno.renameSync(OUT + '/d', OUT + '/e'); Deno.symlinkSync(HOME, OUT + '/d', { type: 'dir' }); return Deno.readTextFileSync(OUT + '/d/secret.json')",
  "reads in a node worker":
    "const { Worker } = await import('node:worker_threads'); const w = new Worker('require(\"fs\").readFileSync(' + JSON.stringify(HOME + '/secret.json') + ')', { eval: true }); return await new Promise((yes, no) => { w.on('error', no); w.on('exit', (c) => c === 0 ? yes('read') : no(new Error('exit'))) })",
  "reads through WASI":
    "const { WASI } = await import('node:wasi'); return new WASI({ version: 'preview1', preopens: { '/': HOME } })",
  "keeps something in a web cache":
    "const c = await caches.open('x'); await c.put('http://x/', new Response('kept')); return 'kept'",
  "opens a database elsewhere":
    "const { DatabaseSync } = await import('node:sqlite'); return new DatabaseSync(HOME + '/x.db')",
  "attaches a database elsewhere":
    "const { DatabaseSync } = await import('node:sqlite'); new DatabaseSync(':memory:').exec(\"ATTACH '\" + HOME + \"/x.db' AS x; CREATE TABLE x.t(a)\"); return 'attached'",
  "opens the inspector":
    "const i = await import('node:inspector'); i.open(0); return i.url()",
  "writes its heap elsewhere":
    "return (await import('node:v8')).writeHeapSnapshot(HOME + '/heap')",
  "listens on a socket in its folder":
    "return Deno.listen({ transport: 'unix', path: OUT + '/s' })",
  "opens the data to everyone": "Deno.chmodSync(DATA, 0o777); return 'changed'",
  "imports from another registry":
    "const p = 'jsr:@std/assert@1'; return await import(p)",
  "asks for more":
    "const s = await Deno.permissions.request({ name: 'read' }); if (s.state !== 'granted') throw new Error('Requires read access: ' + s.state); return s.state",
  "asks about the machine": "return Deno.hostname()",
  "kills a process": "Deno.kill(1, 'SIGCONT'); return 'sent'",
  "changes its folder":
    "Deno.chdir('/'); return Deno.readTextFileSync('etc/hostname')",
};

Deno.test("kvf sandbox refuses every attempt to reach beyond the given folders", async () => {
  using here = place();
  const functions = Object.entries(ATTEMPTS).map(([name, body]) =>
    `[${JSON.stringify(name)}, async () => { ${body} }]`
  );
  Deno.writeTextFileSync(
    `${here.root}/hostile.ts`,
    `// deno-lint-ignore-file
const at = (name: string) => Deno.args[Deno.args.indexOf(name) + 1]!;
const OUT = at("--out"), DATA = at("--data"), HOME = OUT + "/../home", PROJECT = at("--project");
const results: Record<string, string> = {};
for (const [name, attempt] of [${
      functions.join(",\n")
    }] as [string, () => Promise<unknown>][]) {
  try { results[name] = "DONE: " + String(await attempt()).slice(0, 80); }
  catch (error) { results[name] = (error as Error).message.split("\\n")[0]!; }
}
console.log(JSON.stringify(results));
Deno.exit(0);
`,
  );
  const { code, out, err } = await sandbox(
    `${here.root}/hostile.ts`,
    ...["--data", `${here.root}/data`, "--out", here.out],
    ...["--", "--project", ROOT],
  );
  assertEquals(code, 0, err);
  const results = JSON.parse(out) as Record<string, string>;
  assertEquals(Object.keys(results), Object.keys(ATTEMPTS));
  for (const [name, result] of Object.entries(results)) {
    assert(!result.startsWith("DONE"), `${name}: ${result}`);
    assert(!result.includes("SECRET"), `${name}: ${result}`);
  }
  assertEquals([...Deno.readDirSync(`${here.root}/home`)].length, 2);
  assertEquals(Deno.readTextFileSync(`${here.root}/data/given.txt`), "given");
});

Deno.test("kvf sandbox says what it refused and fails", async () => {
  using here = place();
  const cases = {
    "static.ts":
      `import s from "./home/secret.json" with { type: "json" }; console.log(s);`,
    "sibling.ts": `import s from "./home/secret.ts"; console.log(s);`,
    "read.ts":
      `console.log(Deno.readTextFileSync("${here.root}/home/secret.json"));`,
    "write.ts": `await Deno.writeTextFile("${here.root}/home/x", "x");`,
    "run.ts": `new Deno.Command("cc").outputSync();`,
    "later.ts": `setTimeout(() => Deno.readDirSync("/etc"), 10);`,
  };
  for (const [name, text] of Object.entries(cases)) {
    Deno.writeTextFileSync(`${here.root}/${name}`, text);
    const { code, out, err } = await sandbox(`${here.root}/${name}`);
    assertEquals([code, out], [1, ""], `${name}: ${err}`);
    assertStringIncludes(err, "the sandbox refused", name);
  }
  // An unstable feature ends the process at once.
  Deno.writeTextFileSync(
    `${here.root}/wider.ts`,
    `new Worker("data:text/javascript,0", { type: "module", deno: { permissions: { read: true } } }); console.log("started");`,
  );
  const { code, out } = await sandbox(`${here.root}/wider.ts`);
  assert(code !== 0 && out === "", "a worker with wider permissions started");
});

Deno.test("kvf sandbox ends a script that does not listen, at the second request", async () => {
  using here = place();
  Deno.writeTextFileSync(
    `${here.root}/deaf.ts`,
    `for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(signal, () => console.log("no"));
console.log("started");
setInterval(() => {}, 1000);
`,
  );
  const child = new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      ...["run", "-q", "--no-prompt", "-P=launcher", "cli/kvf.ts"],
      ...["sandbox", `${here.root}/deaf.ts`],
    ],
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const reader = child.stdout.getReader();
  // It answers before the next request: two at once may arrive as one.
  for (let i = 0; i < 2; i++) {
    await reader.read();
    child.kill("SIGTERM");
  }
  assertEquals((await child.status).code, 137);
  await reader.cancel();
});

Deno.test("kvf sandbox refuses a script that would do nothing", async () => {
  using here = place();
  const path = `${here.root}/main.ts`;
  Deno.writeTextFileSync(path, "if (import.meta.main) console.log(1);\n");
  const { code, out, err } = await sandbox(path);
  assertEquals([code, out], [2, ""]);
  assertStringIncludes(err, "import.meta.main");
});

Deno.test("a method's file cannot call the C library through the library that kvf may load", async () => {
  using here = place();
  const path = `${here.root}/mine.ts`;
  Deno.writeTextFileSync(
    path,
    `Deno.dlopen("${ROOT}/build/libkvf.so", { getpid: { parameters: [], result: "i32" } });
export { snapkv as default } from "${ROOT}/methods/mod.ts";
`,
  );
  const { code, err } = await kvf("check-method", path);
  assertEquals(code, 1, err);
  assertStringIncludes(err, "the sandbox refused it: Requires ffi access");
});

Deno.test("kvf sandbox lets a script use its folders, the toolkit and its arguments", async () => {
  using here = place();
  Deno.writeTextFileSync(
    `${here.root}/good.ts`,
    `import { LanguageModel, METHODS } from "@kvcache-factory/kvf";
const [, data, , out, ...rest] = Deno.args;
for (let i = 0; i < 2; i++) {
  using model = LanguageModel.random("${ROOT}/models/needle-6m/config.json");
  if (model.shape.layers < 1) throw new Error("no layers");
}
Deno.writeTextFileSync(out + "/copy.txt", Deno.readTextFileSync(data + "/given.txt") + rest.join());
setTimeout(() => { console.log(METHODS.size > 0); Deno.exit(7); }, 5);
`,
  );
  const { code, out, err } = await sandbox(
    `${here.root}/good.ts`,
    ...["--data", `${here.root}/data`, "--out", here.out, "--", "--a", "1"],
  );
  assertEquals([code, out], [7, "true\n"], err);
  assertEquals(Deno.readTextFileSync(`${here.out}/copy.txt`), "given--a,1");
});

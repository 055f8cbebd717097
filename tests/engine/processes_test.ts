/** Several processes on one device: each generates what it would alone, and memory that another one holds is no disaster. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { LanguageModel } from "../../eval/engine/mod.ts";
import { Device, NativeError } from "../../ffi/mod.ts";
import { CHILD_ENV } from "../../tasks/_child.ts";
import { BUILD, MODEL_BUILD } from "../ffi/tiny.ts";
import { answers, bulky, bulkyLayers, MODEL } from "./_shared_device.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url)).replace(/\/$/, "");
const GIB = 2 ** 30;

/** A process of _process.ts. `say` gives it a line, or the end of its input. */
function start(...args: string[]) {
  const child = new Deno.Command("deno", {
    env: CHILD_ENV,
    args: [
      ...["run", "-q", "--no-prompt", "--no-check"],
      ...["--node-modules-dir=manual", "--config", `${ROOT}/deno.json`],
      ...[`--allow-read=${ROOT}`, `--allow-ffi=${BUILD.library}`],
      ...["tests/engine/_process.ts", BUILD.kind, BUILD.library, ...args],
    ],
    cwd: ROOT,
    stdin: "piped",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const lines = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  const input = child.stdin.getWriter();
  return {
    /** The next line that it prints. */
    async line(): Promise<string> {
      while (!text.includes("\n")) {
        const { value, done } = await lines.read();
        assert(!done, "the process ended early");
        text += value;
      }
      const at = text.indexOf("\n") + 1;
      const line = text.slice(0, at);
      text = text.slice(at);
      return line;
    },
    go: () => input.write(new TextEncoder().encode("go\n")),
    async [Symbol.asyncDispose](): Promise<void> {
      await input.close().catch(() => {});
      await lines.cancel();
      await child.status;
    },
  };
}

Deno.test("two processes on one device generate at the same time what one does alone", async () => {
  using model = await LanguageModel.load(MODEL, MODEL_BUILD);
  const alone = await answers(model);
  assert(new Set(alone.flat()).size > 20, "all tokens are alike");
  await using one = start("generate");
  await using two = start("generate");
  for (const process of [one, two]) await process.line();
  for (const process of [one, two]) await process.go();
  // This one goes on as well.
  assertEquals(await answers(model), alone);
  for (const process of [one, two]) {
    assertEquals(JSON.parse(await process.line()), alone);
  }
});

Deno.test({
  name:
    "memory that another process holds is refused with what is needed and what is free, and the rest is of use",
  ignore: BUILD.kind !== "cuda" || BUILD.library.includes("/emulated/"),
  async fn() {
    using device = new Device(BUILD);
    const before = device.info().freeBytes;
    const layers = bulkyLayers(device, 6 * GIB);
    {
      await using holder = start("hold", `${2 * GIB}`);
      await holder.line();
      const free = device.info().freeBytes;
      assert(free < 4 * GIB, `${free} of ${before} bytes are free`);
      const error = assertThrows(
        () => bulky(device, layers),
        NativeError,
        "must be free",
      );
      assertEquals(error.kind, "memory");
      const [, needed, there] =
        /(\d+) bytes of device memory must be free: (\d+) are/.exec(
          error.message,
        )!;
      assert(Number(needed) > 5.5 * GIB && Number(needed) <= 6 * GIB, needed);
      // What this process holds back for itself is free to it alone.
      assert(Math.abs(Number(there) - free) <= 1.5 * GIB, `${there}, ${free}`);
      using model = await LanguageModel.load(MODEL, MODEL_BUILD);
      const beside = await answers(model);
      assert(beside.every(({ length }) => length > 0));
    }
    using _model = bulky(device, layers);
  },
});

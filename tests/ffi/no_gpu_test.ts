/** The CUDA build on a machine without a GPU. */
import { assert } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { CHILD_ENV } from "../../tasks/_child.ts";
import { KIND } from "./tiny.ts";

const ROOT = fromFileUrl(new URL("../..", import.meta.url)).replace(/\/$/, "");
const LIBRARY = `${ROOT}/build/libkvf_cuda.so`;

/** Opens the device in a process of its own, which has the permission: prints "open", or the error's class and message. */
const PROGRAM = `
  import { Device } from "${ROOT}/ffi/mod.ts";
  try {
    using device = new Device({ kind: "cuda" });
    console.log("open " + device.info().name);
  } catch (error) {
    console.log(error.constructor.name + " " + error.kind + " " + error.message);
  }
`;

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

Deno.test({
  name: "a machine without a GPU says so, in one line",
  // It is compiled where there is nvcc.
  ignore: KIND !== "cpu" || !exists(LIBRARY),
  async fn() {
    const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
    try {
      Deno.writeTextFileSync(`${folder}/program.ts`, PROGRAM);
      const { stdout, stderr } = await new Deno.Command("deno", {
        env: CHILD_ENV,
        args: [
          ...["run", "-q", "--no-prompt", "--no-check"],
          ...["--config", `${ROOT}/deno.json`, `--allow-ffi=${LIBRARY}`],
          ...[`--allow-read=${ROOT}`, `${folder}/program.ts`],
        ],
        cwd: ROOT,
      }).output();
      const text = new TextDecoder().decode(stdout);
      const lines = [
        // There is one, or the library is of another commit.
        /^open .+\n$/,
        /^LibraryError .* run "deno task build:cuda"\n$/,
        /^NativeError device Cannot open a CUDA device as none was found: .+\n$/,
      ];
      assert(
        lines.some((line) => line.test(text)),
        text + new TextDecoder().decode(stderr),
      );
    } finally {
      Deno.removeSync(folder, { recursive: true });
    }
  },
});

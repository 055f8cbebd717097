/** Loads the model folder that is named and prints what it cost: bytes of the weights, and by how much memory peaked. */
import { LanguageModel } from "../../eval/engine/mod.ts";

{
  // The library and the code that loads are there before the count begins.
  const tiny = new URL("../goldens/models/llama", import.meta.url).pathname;
  using _model = await LanguageModel.load(tiny, { threads: 1 });
}
const before = Deno.memoryUsage().rss;
let peak = 0;
const look = (): void => {
  peak = Math.max(peak, Deno.memoryUsage().rss - before);
};
using model = await LanguageModel.load(Deno.args[0]!, {
  threads: 1,
  onProgress: look,
});
look();
// deno-lint-ignore no-console -- what the test reads
console.log(JSON.stringify({ weights: model.native.bytes, peak }));

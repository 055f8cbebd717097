// deno-lint-ignore-file no-console -- the command line prints
import { headScores } from "../../eval/head_scores.ts";
import { type Call, text } from "../spec.ts";
import { openModel, printJson, progressBar } from "./_runtime.ts";

/** `kvf models heads`. */
export async function modelsHeadsAction({ flags }: Call): Promise<number> {
  const out = text(flags, "out")!;
  using model = await openModel(flags);
  const bar = progressBar(
    "heads",
    flags.quiet === true || flags.json === true,
  );
  let scores: Record<string, number[]>;
  try {
    scores = await headScores(model, {
      lengths: flags.lengths as number[],
      depths: flags.depths as number,
      seed: flags.seed as number,
      onProgress: (done, total) => bar.set(done, total),
    });
  } finally {
    bar.stop();
  }
  const rounded = Object.fromEntries(
    Object.entries(scores).map((
      [head, values],
    ) => [head, values.map((value) => Number(value.toPrecision(4)))]),
  );
  Deno.writeTextFileSync(`${out}.tmp`, JSON.stringify(rounded) + "\n");
  Deno.renameSync(`${out}.tmp`, out);
  if (flags.json) {
    printJson({
      heads: Object.keys(rounded).length,
      scores: rounded,
      file: out,
    });
    return 0;
  }
  console.log(
    `${Object.keys(scores).length} heads, ${
      Object.values(scores)[0]!.length
    } scores each: ${out}`,
  );
  return 0;
}

// deno-lint-ignore-file no-console -- the command line prints
import { generate } from "../../eval/engine/mod.ts";
import { writeSafetensors } from "../../models/mod.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { promptOf } from "./_prompt.ts";
import { bytes, configurationsOf, openModel, printJson } from "./_runtime.ts";

/** `kvf run`. */
export async function runAction(call: Call): Promise<number> {
  const { flags } = call;
  const [configuration, ...more] = await configurationsOf({
    ...call,
    flags: { ...flags },
  });
  if (!configuration || more.length > 0) {
    throw new UsageError("Cannot run as --method must name one method");
  }
  const dump = text(flags, "dumpLogits");
  // Before the work: a place that cannot be written is told now.
  if (dump !== undefined) {
    Deno.writeFileSync(`${dump}.tmp`, new Uint8Array());
    Deno.removeSync(`${dump}.tmp`);
  }
  using model = await openModel(flags);
  const { tokenizer, generation: defaults } = model.folder;
  const prompt = promptOf(call, model);
  const json = flags.json === true;
  const stream = tokenizer?.stream({ skipSpecialTokens: true });
  const write = (piece: string) =>
    Deno.stdout.writeSync(new TextEncoder().encode(piece));
  const [generation] = await generate(model, prompt, [configuration], {
    maxNewTokens: flags.maxNewTokens as number,
    temperature: flags.temperature as number,
    topK: flags.topK as number,
    topP: flags.topP as number,
    seed: flags.seed as number,
    stop: flags.ignoreEos ? [] : defaults.stopIds,
    logits: flags.dumpLogits !== undefined,
    chunk: json ? 16 : 4,
    ...(json ? {} : {
      onTokens: (tokens) => {
        if (!stream) write(tokens.map((token) => `${token} `).join(""));
        else for (const token of tokens) write(stream.push(token));
      },
    }),
  });
  const { logits, timing, cache, ...result } = generation!;
  if (dump !== undefined && logits) {
    const vocab = model.native.config.vocab;
    writeSafetensors(dump, {
      logits: { shape: [logits.length / vocab, vocab], data: logits },
    });
  }
  if (json) {
    printJson({
      model: text(flags, "model"),
      ...result,
      text: tokenizer?.decode(result.tokens, { skipSpecialTokens: true }) ??
        null,
      cache,
      timing: { loadMs: model.facts.loadMs, ...timing },
    });
    return 0;
  }
  if (stream) write(stream.flush());
  console.log();
  console.error(
    `${result.method}: ${result.promptTokens} prompt tokens, ${result.tokens.length} new; cache ${
      bytes(cache.residentBytes)
    } after prefill (peak ${bytes(cache.peakBytes)}); prefill ${
      timing.prefillMs.toFixed(0)
    } ms, ${timing.decodeMsPerToken.toFixed(1)} ms a token`,
  );
  return 0;
}

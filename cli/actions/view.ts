// deno-lint-ignore-file no-console -- the command line prints
import { basename, dirname, join } from "@std/path";
import type { LanguageModel } from "../../eval/engine/mod.ts";
import {
  attentionPicture,
  renderPng,
  renderSvg,
} from "../../eval/plots/mod.ts";
import { pageHtml, pageViewOf } from "../../eval/report/mod.ts";
import {
  type CaptureOptions,
  captureView,
  decodeProbability,
  packView,
  snapshotSummary,
  type View,
} from "../../eval/view/mod.ts";
import { needleTask } from "../../tasks/mod.ts";
import { pagePath } from "../commands/view.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { promptOf } from "./_prompt.ts";
import {
  bytes,
  configurationsOf,
  openModel,
  printColumns,
  printJson,
} from "./_runtime.ts";

/** `kvf view`. */
export async function viewAction(call: Call): Promise<number> {
  const { flags } = call;
  const configurations = await configurationsOf(call);
  using model = await openModel(flags);
  const { prompt, ...about } = subjectOf(call, model);
  const view = await captureView(model, prompt, configurations, {
    ...about,
    modelName: basename(text(flags, "model")!),
    maxNewTokens: flags.maxNewTokens as number,
    every: flags.every as number,
    stop: model.folder.generation.stopIds,
    scoreWindow: flags.scoreWindow as number,
    attentionLayers: layersOf(flags.attention, model.shape.layers),
    blocks: flags.blocks as number,
  });
  const packed = await packView(view);
  const out = pagePath(flags);
  const files = [out];
  Deno.mkdirSync(dirname(out), { recursive: true });
  Deno.writeTextFileSync(
    out,
    pageHtml({
      title: `What methods keep: ${view.model.name}`,
      views: [await pageViewOf(packed)],
    }),
  );
  const into = text(flags, "into");
  if (into !== undefined) {
    const path = join(into, `${basename(out, ".html")}.view.json`);
    Deno.mkdirSync(into, { recursive: true });
    Deno.writeTextFileSync(path, packed);
    files.push(path);
  }
  if (flags.images) files.push(...await writeImages(view, out));
  const summary = view.configurations.map((one) => ({
    name: one.name,
    answer: one.generated.join(""),
    ...snapshotSummary(view, one),
  }));
  if (flags.json) {
    printJson({ title: view.title, configurations: summary, files });
    return 0;
  }
  printColumns([
    ["configuration", "rows/head", "cache", "marked text kept", "answer"],
    ...summary.map((one) => [
      one.name,
      one.rowsPerHead.toFixed(1),
      bytes(one.bytes),
      one.markedShare === null
        ? "-"
        : `${(100 * one.markedShare).toFixed(1)} %`,
      JSON.stringify(one.answer),
    ]),
  ]);
  console.log(`\n${files.join("\n")}`);
  return 0;
}

/** Prompt, title and what to mark. */
function subjectOf(
  call: Call,
  model: LanguageModel,
): { prompt: number[] } & Pick<CaptureOptions, "title" | "highlights"> {
  const { flags } = call;
  const length = flags.needle as number | undefined;
  const marked = text(flags, "highlight");
  if (length === undefined) {
    const file = text(flags, "promptFile");
    return {
      prompt: promptOf(call, model),
      title: file === undefined ? "Prompt" : basename(file),
      ...(marked === undefined ? {} : { highlights: [marked] }),
    };
  }
  if (
    text(flags, "prompt") !== undefined ||
    text(flags, "promptFile") !== undefined || marked !== undefined
  ) {
    throw new UsageError(
      "Cannot look at a needle as --prompt, --prompt-file and --highlight must be left out: --needle makes the prompt",
    );
  }
  const tokenizer = model.folder.tokenizer;
  if (!tokenizer) {
    throw new UsageError(
      "Cannot look at a needle as the model must have a tokenizer: tokenizer.json is missing",
    );
  }
  const { maxPositions } = model.folder.config;
  if (length > maxPositions) {
    throw new UsageError(
      `Cannot look at a needle as its text must fit in the model's ${maxPositions} positions: it has ${length} tokens`,
    );
  }
  const depth = flags.depth as number;
  const seed = flags.seed as number;
  const example = needleTask({ lengths: [length], depths: [depth], seed })
    .example({
      encode: (words) => tokenizer.encode(words, { specialTokens: false }),
      decode: (ids) => tokenizer.decode(ids, { skipSpecialTokens: true }),
    }, { length, depth, index: 0 });
  return {
    prompt: tokenizer.encodePrompt(example.prompt + example.answerPrefix),
    title: `Needle in ${length.toLocaleString("en")} tokens, depth ${depth} %`,
    highlights: [String(example.meta.needle)],
  };
}

/** Layers of `--attention`. */
function layersOf(value: unknown, layers: number): number[] {
  if (Array.isArray(value)) return value;
  if (value === "none") return [];
  return value === "all"
    ? Array.from({ length: layers }, (_, i) => i)
    : [0, layers >> 1, layers - 1];
}

/** Attention maps of each layer as files: the mean over heads, then every head. */
async function writeImages(view: View, out: string): Promise<string[]> {
  const { attention, model } = view;
  if (attention === null) {
    throw new UsageError(
      "Cannot write images as --attention must name layers: it is none",
    );
  }
  const files: string[] = [];
  const size = attention.blocks ** 2;
  for (const [i, layer] of attention.layers.entries()) {
    const heads = Array.from({ length: model.queryHeads }, (_, head) => {
      const from = (i * model.queryHeads + head) * size;
      return Float64Array.from(
        attention.maps.subarray(from, from + size),
        decodeProbability,
      );
    });
    const mean = heads[0]!.map((_, at) =>
      heads.reduce((sum, values) => sum + values[at]!, 0) / heads.length
    );
    const svg = await renderSvg(
      await attentionPicture({
        title: `${model.name}: attention of layer ${layer}`,
        tokens: view.tokens.length,
        blocks: attention.blocks,
        panels: [
          { title: "mean over heads", values: mean },
          ...heads.map((values, head) => ({ title: `head ${head}`, values })),
        ],
      }),
    );
    const base = `${out.replace(/\.html$/, "")}_attention_${layer}`;
    Deno.writeTextFileSync(`${base}.svg`, svg);
    Deno.writeFileSync(`${base}.png`, await renderPng(svg));
    files.push(`${base}.svg`, `${base}.png`);
  }
  return files;
}

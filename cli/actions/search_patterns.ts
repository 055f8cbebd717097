import { patternFile, searchPatterns } from "../../eval/search_patterns.ts";
import { type Call, text, UsageError } from "../spec.ts";
import { openModel, printColumns, printJson } from "./_runtime.ts";

/** `kvf search-patterns`. */
export async function searchPatternsAction({ flags }: Call): Promise<number> {
  const files = (text(flags, "promptFile") ?? "").split(",").filter(Boolean);
  const ids = flags.promptIds as number[] | undefined;
  if ((files.length > 0) === (ids !== undefined)) {
    throw new UsageError(
      "Cannot search as exactly one of --prompt-file and --prompt-ids must be given",
    );
  }
  using model = await openModel(flags);
  const prompts = ids !== undefined ? [ids] : files.map((file) => {
    const { tokenizer } = model.folder;
    if (tokenizer) return tokenizer.encodePrompt(Deno.readTextFileSync(file));
    throw new UsageError(
      "Cannot search as a prompt in words needs a tokenizer.json in the model folder: use --prompt-ids",
    );
  });
  const found = await searchPatterns(model, prompts, {
    recall: flags.recall as number,
  });
  const file = text(flags, "out")!;
  Deno.writeTextFileSync(file, patternFile(found));
  if (flags.json) {
    printJson({ patterns: found, file });
    return 0;
  }
  printColumns([
    ["layer", "head", "pattern", "sizes", "kept", "computed"],
    ...found.flatMap((heads, layer) =>
      heads.map(({ candidate: [name, first, second], kept, pairs }, head) => [
        `${layer}`,
        `${head}`,
        name,
        `${first} ${second}`,
        `${(100 * kept).toFixed(1)} %`,
        `${(100 * pairs).toFixed(1)} %`,
      ])
    ),
  ]);
  return 0;
}

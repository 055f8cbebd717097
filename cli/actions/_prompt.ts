/**
 * The prompt of a call.
 *
 * @module
 */
import type { LanguageModel } from "../../eval/engine/mod.ts";
import { readDataFile, textOf } from "../../tasks/_files.ts";
import { type Call, text, UsageError } from "../spec.ts";

/** Token ids of `--prompt`, `--prompt-file` or `--prompt-ids`, of which one must be given. */
export function promptOf(
  { flags }: Call,
  model: LanguageModel,
): number[] {
  const file = text(flags, "promptFile"), inline = text(flags, "prompt");
  const ids = flags.promptIds as number[] | undefined;
  if ([file, inline, ids].filter((given) => given !== undefined).length !== 1) {
    throw new UsageError(
      "Cannot run as exactly one of --prompt, --prompt-file and --prompt-ids must be given",
    );
  }
  if (ids !== undefined) return ids;
  const tokenizer = model.folder.tokenizer;
  if (!tokenizer) {
    throw new UsageError(
      "Cannot run as a prompt in words needs a tokenizer.json in the model folder: use --prompt-ids",
    );
  }
  const prompt = inline ?? textOf(readDataFile(file!));
  if (prompt === "") {
    throw new UsageError(
      `Cannot run as the prompt must have a character: ${
        file === undefined ? "--prompt" : `"${file}"`
      } is empty`,
    );
  }
  return flags.chat
    ? tokenizer.encodeChat([{ role: "user", content: prompt }], {
      addGenerationPrompt: true,
    })
    : tokenizer.encodePrompt(prompt);
}

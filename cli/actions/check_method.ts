// deno-lint-ignore-file no-console -- the command line prints
import { fromFileUrl } from "@std/path";
import {
  type MethodCheck,
  modelChecks,
  shapeChecks,
} from "../../eval/check_method.ts";
import { LanguageModel } from "../../eval/engine/mod.ts";
import { loadMethod } from "../../methods/mod.ts";
import { type Call, text } from "../spec.ts";
import { methodOptions, printJson } from "./_runtime.ts";

const BUNDLED = new URL("../../models/needle-6m/config.json", import.meta.url);

/** `kvf check-method`. */
export async function checkMethodAction(
  { args, flags, rest }: Call,
): Promise<number> {
  const method = await loadMethod(args[0]!);
  const given = methodOptions([method], rest);
  const folder = text(flags, "model");
  using model = folder === undefined
    ? LanguageModel.random(fromFileUrl(BUNDLED))
    : await LanguageModel.load(folder);
  const checks: MethodCheck[] = [
    ...method.granularities.flatMap((granularity) =>
      modelChecks(method, model, granularity, given).map((check) => ({
        ...check,
        name: `${check.name}, ${granularity}`,
      }))
    ),
    ...shapeChecks(method, model.device, given),
  ];
  const results: { check: string; holds: boolean; reason?: string }[] = [];
  for (const { name, run } of checks) {
    const reason = await run().then(
      () => undefined,
      (error: Error) => error.message,
    );
    const holds = reason === undefined;
    results.push({ check: name, holds, ...(holds ? {} : { reason }) });
    if (!flags.json) {
      console.log(
        holds ? `ok      ${name}` : `FAILED  ${name}\n        ${reason}`,
      );
    }
  }
  const failed = results.filter(({ holds }) => !holds).length;
  if (flags.json) printJson({ method: method.name, given, results });
  else {
    console.log(
      `${method.name}: ${
        results.length - failed
      } of ${results.length} checks hold`,
    );
  }
  return failed === 0 ? 0 : 1;
}

/**
 * The oracle's view of the recorded cases.
 *
 * @module
 */
import { resolveMethod, resolveOptions } from "../../../methods/mod.ts";
import { type Golden, input, ourOptions } from "../goldens.ts";
import type { Task } from "./evict.ts";

/** A recorded case as a task. */
export function taskOf(golden: Golden): Task<unknown> {
  const { options } = golden;
  const { shape, ...tensors } = input(golden.input);
  return {
    input: { ...shape, ...tensors },
    storedHeads: options.granularity === "kv_head"
      ? shape.kvHeads
      : shape.queryHeads,
    layer: options.layer_idx ?? 0,
    layers: options.num_hidden_layers ?? (options.layer_idx ?? 0) + 1,
    options: resolveOptions(
      resolveMethod(golden.method),
      ourOptions(golden),
    ),
  };
}

import { type CommandSpec, paths } from "../spec.ts";

/** `kvf models inspect`: what a model folder holds. */
export const modelsInspect: CommandSpec = {
  path: ["models", "inspect"],
  declare(command) {
    command
      .description(
        "Check a model folder and print its shape, sizes and cache bytes per token",
      )
      .argument("<dir>", "Hugging Face model folder")
      .addHelpText(
        "after",
        "\nExample:\n  kvf models inspect models/needle-6m",
      );
  },
  json: {
    path: "the folder",
    architecture: "as its configuration has it",
    family: "the reader of that architecture",
    shape: "layers, heads, widths, vocabulary",
    maxPositions: "positions that it was made for",
    parameters: "number of weights",
    weightBytes: "bytes of the weights",
    weightFiles: "files that hold them",
    dtype: "type of most weights",
    tensorDtypes: "tensors by type",
    ignoredTensors: "tensors that are not used",
    cacheBytesPerToken: "bytes of a full cache by type of its rows",
    rope: "rotation of positions",
    windows: "layers by sliding window, tokens",
    features: "what sets it apart from a plain decoder",
    stopIds: "tokens that end an answer",
    tokenizer: "vocabulary and chat template, or null",
    hash: "digest of all files, as in records",
  },
  grants({ args }) {
    return { read: paths(args[0]) };
  },
  run: async (call) =>
    (await import("../actions/models_inspect.ts")).modelsInspectAction(call),
};

import { type CommandSpec, methodPaths } from "../spec.ts";

/** `kvf methods`: what there is, with options and defaults. */
export const methods: CommandSpec = {
  path: ["methods"],
  declare(command) {
    command
      .description("List the methods, or show one with its options")
      .argument("[name]", "a method's name or a file that exports one")
      .addHelpText("after", "\nExample:\n  kvf methods snapkv");
  },
  json: {
    methods: "name, title, summary, paper, kind, layouts and options of each",
  },
  grants({ args }) {
    return { read: methodPaths(args[0]) };
  },
  run: async (call) =>
    (await import("../actions/methods.ts")).methodsAction(call),
};

import type { CommandSpec } from "../spec.ts";

/** `kvf doctor`: is this machine ready? */
export const doctor: CommandSpec = {
  path: ["doctor"],
  declare(command) {
    command
      .description("Check compilers, library, SIMD level and permissions")
      .option(
        "--permissions <task>",
        "print what a task of deno.json may do and why",
      )
      .addHelpText("after", "\nExample:\n  kvf doctor --permissions needle");
  },
  json: {
    ready:
      "whether everything that is needed is there; null with --permissions",
    checks: "name, whether it is there, and what was found",
    permissions:
      "with --permissions: the task, its permissions and their reasons; null otherwise",
  },
  grants({ flags }) {
    return flags.permissions === undefined
      ? { native: true, run: ["cc", "nvcc"] }
      : {};
  },
  run: async (call) =>
    (await import("../actions/doctor.ts")).doctorAction(call),
};

import type { CommandSpec } from "../spec.ts";

/** `kvf doctor`: is this machine ready? */
export const doctor: CommandSpec = {
  path: ["doctor"],
  declare(command) {
    command
      .description("Check compiler, library, SIMD level, GPU and permissions")
      .option(
        "--permissions <task>",
        "print what a task of deno.json may do and why",
      )
      .option("--json", "print one JSON object", false)
      .addHelpText("after", "\nExample:\n  kvf doctor --permissions needle");
  },
  grants({ flags }) {
    return flags.permissions === undefined
      ? { native: true, run: ["cc", "nvcc"] }
      : {};
  },
  run: async (call) =>
    (await import("../actions/doctor.ts")).doctorAction(call),
};

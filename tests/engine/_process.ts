/**
 * A process that shares a device with others. Its arguments are a kind of device, a library and what to do: `generate`
 * prints the tokens of several methods when a line comes on standard input; `hold` takes all of the device's memory but
 * as many bytes as the fourth argument says, prints a line, and keeps it until standard input ends.
 */
// deno-lint-ignore-file no-console -- what the test reads
import { LanguageModel } from "../../eval/engine/mod.ts";
import { Device, type DeviceKind } from "../../ffi/mod.ts";
import { answers, bulky, bulkyLayers, MODEL } from "./_shared_device.ts";

const [device, library, what, spare] = Deno.args as [
  DeviceKind,
  string,
  string,
  string?,
];

async function line(): Promise<void> {
  await Deno.stdin.read(new Uint8Array(16));
}

if (what === "generate") {
  using model = await LanguageModel.load(MODEL, { device, library });
  console.log("ready");
  await line();
  console.log(JSON.stringify(await answers(model)));
} else {
  using own = new Device({ kind: device, library });
  const bytes = own.info().freeBytes - Number(spare);
  using _model = bulky(own, bulkyLayers(own, bytes));
  console.log("ready");
  await line();
}

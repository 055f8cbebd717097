import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { METHODS } from "../../methods/mod.ts";
import { methodsPage } from "../../tasks/methods_page.ts";

Deno.test("docs/methods.md is what the code says; run deno task docs:methods", () => {
  const path = fromFileUrl(new URL("../../docs/methods.md", import.meta.url));
  const page = methodsPage();
  assertEquals(Deno.readTextFileSync(path), page);
  for (const name of METHODS.keys()) assert(page.includes(`\`${name}\``));
});

import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { METHODS } from "../../methods/mod.ts";
import { methodsPage, withMethodTable } from "../../tasks/methods_page.ts";

Deno.test("docs/methods.md is what the code says; run deno task docs:methods", () => {
  const path = fromFileUrl(new URL("../../docs/methods.md", import.meta.url));
  const page = methodsPage();
  assertEquals(Deno.readTextFileSync(path), page);
  for (const name of METHODS.keys()) assert(page.includes(`\`${name}\``));
});

Deno.test("the README's table of methods is what the code says; run deno task docs:methods", () => {
  const path = fromFileUrl(new URL("../../README.md", import.meta.url));
  const readme = Deno.readTextFileSync(path);
  assertEquals(readme, withMethodTable(readme));
  for (const name of METHODS.keys()) assert(readme.includes(`\`${name}\``));
});

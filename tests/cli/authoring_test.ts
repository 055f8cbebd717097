/** Writing a method of one's own: the file that `kvf new-method` writes works, and `kvf check-method` finds faults. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { methodTemplate } from "../../cli/actions/new_method.ts";
import { kvf, ROOT } from "./_kvf.ts";

Deno.test("kvf new-method writes a method that passes kvf check-method, as it is and with other parts", async () => {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const file = `${folder}/mine.ts`;
  const made = await kvf("new-method", "mine", "--out", file);
  assertEquals(made.code, 0, made.err);
  assertEquals(Deno.readTextFileSync(file), methodTemplate("mine"));
  for (const more of [[], ["--budget-policy", "adaptive", "--window", "3"]]) {
    const checked = await kvf("check-method", file, "--json", ...more);
    assertEquals(checked.code, 0, checked.out + checked.err);
    const { method, results } = JSON.parse(checked.out);
    assertEquals(method, "mine");
    assert(results.length >= 8);
  }
  const again = await kvf("new-method", "mine", "--out", file);
  assertEquals(again.code, 2);
  assertStringIncludes(again.err, "file must be new");
  Deno.removeSync(folder, { recursive: true });
});

Deno.test("kvf new-method refuses names that are taken or no names", async () => {
  for (const name of ["snapkv", "My Method"]) {
    const { code, err } = await kvf("new-method", name);
    assertEquals(code, 2);
    assertStringIncludes(err, `"${name}"`);
  }
});

Deno.test("kvf check-method ends with status 1 and the reason when a promise is broken", async () => {
  const folder = Deno.makeTempDirSync({ dir: `${ROOT}/build` });
  const file = `${folder}/greedy.ts`;
  const text = methodTemplate("greedy");
  const broken = text.replace(
    "    return votes.multiply(lengths);",
    "    layer.retain(null, { last: 3 });\n    return votes.multiply(lengths);",
  );
  assert(broken !== text);
  Deno.writeTextFileSync(file, broken);
  const { code, out } = await kvf("check-method", file);
  assertEquals(code, 1, out);
  assertStringIncludes(out, "FAILED");
  Deno.removeSync(folder, { recursive: true });
});

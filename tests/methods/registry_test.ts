import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import {
  defineMethod,
  flag,
  integer,
  integers,
  isMethodPath,
  loadMethod,
  METHODS,
  optionFlags,
  real,
  resolveMethod,
  resolveOptions,
  snapkv,
} from "../../methods/mod.ts";

function fixture(name: string): string {
  return fromFileUrl(new URL(`./fixtures/${name}`, import.meta.url));
}

const many = defineMethod<
  { ratio: number; exact: boolean; skip: number[]; n: number }
>({
  name: "many",
  title: "Many",
  summary: "One option of each type",
  kind: "none",
  acts: "never",
  granularities: ["kv_head"],
  differs: "nothing known",
  options: {
    ratio: real("A share", { min: 0, max: 1, default: 0.5, source: "here" }),
    exact: flag("Yes or no", { default: false }),
    skip: integers("Layers", { default: [0, 1] }),
    n: integer("A number", { min: 1, max: 9 }),
  },
  create: () => ({}),
});

Deno.test("METHODS lists every method under its own name", () => {
  for (const [name, method] of METHODS) assertEquals(method.name, name);
});

Deno.test("METHODS hold a title, a summary and flags for each method", () => {
  for (const method of METHODS.values()) {
    assert(method.title && method.acts && method.differs);
    for (const flag of optionFlags(method)) assert(flag.description);
  }
});

Deno.test("resolveMethod suggests the nearest name", () => {
  assertEquals(resolveMethod("snapkv"), snapkv);
  assertThrows(
    () => resolveMethod("SnapVK"),
    TypeError,
    'did you mean "snapkv"?',
  );
  const error = assertThrows(() => resolveMethod("nothing-like-it"), TypeError);
  assert(!error.message.includes("did you mean"));
});

Deno.test("resolveOptions fills in defaults", () => {
  assertEquals(resolveOptions(snapkv, { budget: 64, pool: undefined }), {
    budget: 64,
    observationWindow: 32,
    poolWidth: 7,
    pool: "max",
    groupReduce: "mean",
    budgetPolicy: "uniform",
    headFile: "",
    merge: "none",
    quant: "none",
    schedule: "prefill",
  });
});

Deno.test("resolveOptions refuses an unknown option and lists the valid ones", () => {
  assertThrows(
    () => resolveOptions(snapkv, { budget: 64, poolwidth: 5 }),
    TypeError,
    'budget, observationWindow, poolWidth, pool, groupReduce, budgetPolicy, headFile, merge, quant, schedule: "poolwidth" was given; did you mean "poolWidth"?',
  );
  assertThrows(
    () => resolveOptions(resolveMethod("fullkv"), { budget: 64 }),
    TypeError,
    'its options are quant: "budget" was given',
  );
});

Deno.test("resolveOptions refuses a missing required option", () => {
  assertThrows(
    () => resolveOptions(snapkv, {}),
    TypeError,
    'option "budget" is required',
  );
});

Deno.test("resolveOptions tells a wrong type from a wrong value", () => {
  assertThrows(
    () => resolveOptions(snapkv, { budget: "64" }),
    TypeError,
    'option "budget" is wrong: "64"',
  );
  assertThrows(() => resolveOptions(snapkv, { budget: 1.5 }), TypeError, "1.5");
  assertThrows(
    () => resolveOptions(snapkv, { budget: 64, pool: "median" }),
    TypeError,
    '"median"',
  );
  assertThrows(() => resolveOptions(snapkv, { budget: 0 }), RangeError, ">=1");
  assertThrows(
    () => resolveOptions(many, { n: 1, ratio: 1.5 }),
    RangeError,
    "<=1",
  );
});

Deno.test("optionFlags derives flags from the specs", () => {
  const flags = optionFlags(many);
  assertEquals(
    flags.map(({ flag, type, required }) => [flag, type, required]),
    [
      ["--ratio", "number", false],
      ["--exact", "boolean", false],
      ["--skip", "integers", false],
      ["--n", "integer", true],
    ],
  );
  assertEquals(flags[0]?.default, 0.5);
  assertEquals(flags[0]?.source, "here");
  assertEquals(optionFlags(snapkv).map(({ flag }) => flag), [
    "--budget",
    "--observation-window",
    "--pool-width",
    "--pool",
    "--group-reduce",
    "--budget-policy",
    "--head-file",
    "--merge",
    "--quant",
    "--schedule",
  ]);
  assertEquals(optionFlags(snapkv)[3]?.choices, ["max", "avg"]);
});

Deno.test("OptionFlag.parse() reads and checks text", () => {
  const [ratio, exact, skip, n] = optionFlags(many);
  assertEquals(ratio?.parse("0.25"), 0.25);
  assertEquals(exact?.parse("true"), true);
  assertEquals(skip?.parse("0, 3,5"), [0, 3, 5]);
  assertEquals(skip?.parse(""), []);
  assertEquals(n?.parse("9"), 9);
  assertThrows(() => n?.parse("10"), RangeError, "<=9");
  assertThrows(() => n?.parse("0x9"), TypeError, "must be a number");
  assertThrows(() => n?.parse(""), TypeError, "must be a number");
  assertThrows(() => n?.parse("1.5"), TypeError, "1.5");
  assertThrows(() => exact?.parse("yes"), TypeError, "true or false");
});

Deno.test("isMethodPath tells a file from a name", () => {
  assertEquals(
    ["snapkv", "./mine.ts", "mine.ts", "/a/b", "file:///a.ts"].map(
      isMethodPath,
    ),
    [false, true, true, true, true],
  );
});

Deno.test("loadMethod takes the default export of a file", async () => {
  assertEquals((await loadMethod(fixture("default.ts"))).name, "every-other");
});

Deno.test("loadMethod takes the only export that is a method", async () => {
  assertEquals((await loadMethod(fixture("named.ts"))).name, "first-rows");
});

Deno.test("loadMethod refuses a file with no method or with two", async () => {
  for (const [name, count] of [["none.ts", 0], ["two.ts", 2]]) {
    await assertRejects(
      () => loadMethod(fixture(`${name}`)),
      TypeError,
      `exactly one export that is a method: there are ${count}`,
    );
  }
});

Deno.test("loadMethod names the field that makes a method invalid", async () => {
  await assertRejects(
    () => loadMethod(fixture("invalid.ts")),
    TypeError,
    "kind",
  );
});

Deno.test("loadMethod refuses a name that is taken", async () => {
  await assertRejects(
    () => loadMethod(fixture("taken.ts")),
    TypeError,
    'the name "snapkv" is taken',
  );
});

Deno.test("loadMethod passes a permission refusal on", async () => {
  // Outside the folders that tests may read.
  await assertRejects(
    () => loadMethod("/nowhere/mine.ts"),
    Error,
    "read access",
  );
});

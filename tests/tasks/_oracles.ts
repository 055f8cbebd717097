/**
 * Scripted solvers: each reads a prompt as a person would, and knows nothing of how it was made.
 *
 * @module
 */

/** The question: the last line of a prompt. */
function questionOf(prompt: string): string {
  return prompt.trimEnd().split("\n").at(-1) ?? "";
}

/** All values of the keys that the question names, in its order. */
function niah(prompt: string): string[] {
  const [, asked = ""] =
    /^What (?:is|are) the \w+ of (.*)\?$/.exec(questionOf(prompt)) ?? [];
  const needles = [
    ...prompt.matchAll(/In the ledger of \w+, (\S+) holds (\S+)\./g),
  ];
  return asked.split(/, | and /).flatMap((key) =>
    needles.flatMap(([, k, value]) => k === key ? [value!] : [])
  );
}

/** Follows assignments from the value that the question names; the worked example has names and a value of its own. */
function vt(prompt: string): string[] {
  const [, value] = /hold the value (\d+)\?/.exec(questionOf(prompt)) ?? [];
  const holds = new Set<string>();
  for (
    const [, name, source] of prompt.matchAll(/VAR (\w+) = (?:VAR )?(\w+)/g)
  ) {
    if (source === value || holds.has(source!)) holds.add(name!);
  }
  return [...holds];
}

function mostFrequent(words: string[], count: number): string[] {
  const counts = Map.groupBy(words, (word) => word);
  return [...counts].sort(([, a], [, b]) => b.length - a.length)
    .slice(0, count).map(([word]) => word);
}

/** Counts the words of the last list. */
function cwe(prompt: string): string[] {
  const list = prompt.trimEnd().split("\n").at(-2) ?? "";
  return mostFrequent(list.split(/ ?\d+\. /).slice(1), 10);
}

function fwe(prompt: string): string[] {
  const text = prompt.trimEnd().split("\n").at(-2) ?? "";
  return mostFrequent(text.split(" ").filter((word) => word !== "..."), 3);
}

/** Looks invented people up. */
function qa(prompt: string): string[] {
  const [, form, person = ""] =
    /Question: (Where was|Who taught|What did) (.*?)(?: born| keep)?\?/.exec(
      prompt,
    ) ?? [];
  const teacherOf = (name: string): string =>
    new RegExp(`${name} was born in \\w+ and learned from (.*?) how`)
      .exec(prompt)?.[1] ?? "";
  const prefix = "the teacher of ";
  const name = person.startsWith(prefix)
    ? teacherOf(person.slice(prefix.length))
    : person;
  if (form === "Who taught") return [teacherOf(name)];
  const fact = form === "Where was"
    ? `${name} was born in (\\w+)`
    : `${name} kept a (.*?) near`;
  return [new RegExp(fact).exec(prompt)?.[1] ?? ""];
}

/** The solver of a task. */
export function oracleOf(task: string): (prompt: string) => string[] {
  return task.startsWith("niah") ? niah : { vt, cwe, fwe }[task] ?? qa;
}

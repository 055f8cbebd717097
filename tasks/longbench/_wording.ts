/**
 * Our own wording of the LongBench prompts, for those who have the data but not the official `dataset2prompt.json`.
 * Scores with it do not compare with published ones; records say which wording was used.
 *
 * @module
 */

const QA =
  "Answer the question from the text. Give the answer alone, in as few words as possible.\n\nText:\n{context}\n\nQuestion: {input}\nAnswer:";
const DOCUMENTS =
  "Answer the question from the documents. Give the answer alone, in as few words as possible.\n\nDocuments:\n{context}\n\nQuestion: {input}\nAnswer:";
const QA_ZH =
  "请根据下面的材料回答问题，只写出答案。\n\n材料：\n{context}\n\n问题：{input}\n答案：";

/** Template by data set, with the slots `{context}` and `{input}`. */
export const OWN_PROMPTS: Readonly<Record<string, string>> = {
  narrativeqa:
    "Answer the question about the story. Give the answer alone, in as few words as possible.\n\nStory:\n{context}\n\nQuestion: {input}\nAnswer:",
  qasper:
    "Answer the question about the paper. Give the answer alone, in as few words as possible: yes or no where that is asked, unanswerable where the paper does not tell.\n\nPaper:\n{context}\n\nQuestion: {input}\nAnswer:",
  "multifieldqa_en": QA,
  "multifieldqa_zh": QA_ZH,
  hotpotqa: DOCUMENTS,
  "2wikimqa": DOCUMENTS,
  musique: DOCUMENTS,
  dureader: QA_ZH,
  "gov_report": "Summarise this report.\n\nReport:\n{context}\n\nSummary:",
  qmsum:
    "A question about a meeting follows its transcript. Answer it in one or a few sentences.\n\nTranscript:\n{context}\n\nQuestion: {input}\nAnswer:",
  "multi_news":
    "Summarise these news articles together.\n\nArticles:\n{context}\n\nSummary:",
  vcsum: "请为下面的会议记录写一份总结。\n\n会议记录：\n{context}\n\n总结：",
  trec: "Name the kind of each question.\n\n{context}\n{input}",
  triviaqa:
    "Answer the last question from its passage; the examples show how.\n\n{context}\n\n{input}",
  samsum:
    "Summarise the last dialogue; the examples show how.\n\n{context}\n\n{input}",
  lsht: "请判断每条新闻的类别。\n\n{context}\n{input}",
  "passage_count":
    "Some of these paragraphs occur more than once. How many different paragraphs are there?\n\n{context}\n\nThe number of different paragraphs alone:",
  "passage_retrieval_en":
    'Which of these paragraphs does the summary stand for? Answer as in "Paragraph 3".\n\n{context}\n\nSummary:\n{input}\n\nAnswer:',
  "passage_retrieval_zh":
    "下面的摘要对应哪一个段落？请按“段落3”的形式回答。\n\n{context}\n\n摘要：\n{input}\n\n答案：",
  lcc: "Continue this code.\n{context}Next line:\n",
  "repobench-p": "Continue this code.\n{context}{input}Next line:\n",
};

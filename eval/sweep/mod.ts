/**
 * Sweeps: plans, what they come to, and jobs that share one.
 *
 * @module
 */
export { expandPlan, planPaths, taskRuns } from "./expand.ts";
export {
  combinations,
  parsePlan,
  type Plan,
  PLAN_CONFIGURATION_SCHEMA,
  PLAN_MODEL_SCHEMA,
  PLAN_SCHEMA,
  PLAN_TASK_SCHEMA,
  type PlanInput,
  planJsonSchema,
  type PlanModel,
  readPlan,
} from "./plan.ts";
export { type SlurmJob, slurmScript } from "./slurm.ts";

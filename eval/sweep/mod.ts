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
  type PlanConfiguration,
  type PlanConfigurationInput,
  type PlanInput,
  planJsonSchema,
  type PlanModel,
  type PlanModelInput,
  type PlanTask,
  type PlanTaskInput,
  readPlan,
} from "./plan.ts";
export { type SlurmJob, slurmScript } from "./slurm.ts";

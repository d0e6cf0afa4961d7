/* plan_print.h - the plan as people and programs read it. */
#pragma once
#include "plan.h"

/* To stdout: the tables, or one JSON object on one line. */
void vq_plan_print(const vq_plan *plan);
void vq_plan_print_json(const vq_plan *plan);

/* To the log: the layout, the ranks that take least and most, what a step sends. */
void vq_plan_log(const vq_plan *plan);

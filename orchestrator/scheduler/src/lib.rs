//! orchestrator/scheduler

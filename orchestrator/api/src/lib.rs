//! orchestrator/api

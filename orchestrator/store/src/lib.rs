//! orchestrator/store

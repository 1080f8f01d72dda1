//! orchestrator/controllers

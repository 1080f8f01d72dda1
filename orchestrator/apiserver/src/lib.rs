//! orchestrator/apiserver

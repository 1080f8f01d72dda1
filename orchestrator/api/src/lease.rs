//! Leases.

use serde_json::Value;

use crate::{
    field::{FieldError, Path},
    kind::Hooks,
    pod::validate::non_negative,
    print::{self, AGE, Column, NAME},
};

pub(crate) const HOOKS: Hooks = Hooks {
    validate_create: |lease, errors| validate(lease, errors),
    validate_update: |new, _, _, errors| validate(new, errors),
    columns: &[NAME, Column::text("Holder"), AGE],
    row: |lease, now| {
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        vec![print::name(lease), holder.into(), print::age(lease, now)]
    },
    ..Hooks::PLAIN
};

fn validate(lease: &Value, errors: &mut Vec<FieldError>) {
    let (spec, path) = (&lease["spec"], Path::new("spec"));
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|s| s <= 0) {
        errors.push(FieldError::invalid(
            path.child("leaseDurationSeconds"),
            &spec["leaseDurationSeconds"],
            "must be greater than 0",
        ));
    }
    non_negative(&spec["leaseTransitions"], &path.child("leaseTransitions"), errors);
}

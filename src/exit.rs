//! Errors on their way to the exit code.

use std::fmt;

use optix_base::ErrorClass;
use optix_data::DataError;
use optix_io::IoError;
use optix_pipeline::OracleError;
use optix_pipeline::report::Requirement;
use optix_pipeline::runner::RunError;

/// A threshold was missed: everything worked, the result is not good enough. Exit code 1.
#[derive(Debug)]
pub struct Missed(pub usize);

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the requirements missed (OX-R001)", self.0)
    }
}

impl std::error::Error for Missed {}

impl Missed {
    /// The error when some of the requirements are missed.
    pub fn among(requirements: &[Requirement]) -> Result<(), Missed> {
        match requirements.iter().filter(|requirement| !requirement.met).count() {
            0 => Ok(()),
            missed => Err(Missed(missed)),
        }
    }
}

/// An error whose class is known where it is made.
#[derive(Debug)]
pub struct Classed(pub ErrorClass, pub String);

impl fmt::Display for Classed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.1)
    }
}

impl std::error::Error for Classed {}

/// An engine's error with what helps.
#[derive(Debug)]
pub struct Helped {
    pub error: OracleError,
    pub help: String,
}

impl fmt::Display for Helped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Helped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// The class of an engine's error.
fn oracle_class(error: &OracleError) -> ErrorClass {
    match error {
        OracleError::Internal { .. } => ErrorClass::Internal,
        OracleError::Environment(_) => ErrorClass::Environment,
        OracleError::Interrupted => ErrorClass::Interrupted,
        OracleError::Data(error) => error.class(),
        _ => ErrorClass::Input,
    }
}

/// The exit code for an error, from the first of its causes that has a class.
pub fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<Missed>() {
            return 1;
        }
        let class = if let Some(error) = cause.downcast_ref::<IoError>() {
            Some(error.class())
        } else if let Some(error) = cause.downcast_ref::<DataError>() {
            Some(error.class())
        } else if let Some(error) = cause.downcast_ref::<optix_base::OutputError>() {
            Some(error.class())
        } else if let Some(error) = cause.downcast_ref::<OracleError>() {
            Some(oracle_class(error))
        } else if let Some(error) = cause.downcast_ref::<RunError>() {
            Some(run_class(error))
        } else if let Some(Classed(class, _)) = cause.downcast_ref::<Classed>() {
            Some(*class)
        } else {
            cause.downcast_ref::<std::io::Error>().map(ErrorClass::of_io)
        };
        if let Some(class) = class {
            return class.exit_code();
        }
    }
    ErrorClass::Input.exit_code()
}

fn run_class(error: &RunError) -> ErrorClass {
    use optix_pipeline::PassError;
    use optix_pipeline::runner::StepFault;
    if error.is_internal() {
        return ErrorClass::Internal;
    }
    match &*error.fault {
        StepFault::Pass(PassError::Interrupted) => ErrorClass::Interrupted,
        StepFault::Pass(PassError::Oracle(error)) | StepFault::Check(error) => oracle_class(error),
        StepFault::Dump(error) => error.class(),
        StepFault::Directory(_, error) => ErrorClass::of_io(error),
        _ => ErrorClass::Input,
    }
}

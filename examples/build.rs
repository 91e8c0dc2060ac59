//! Compiles the services' .proto files with protox, so that nobody needs `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(
        [
            "proto/orders.proto",
            "proto/inventory.proto",
            "proto/notifications.proto",
            "proto/billing.proto",
            "proto/bank.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

//! Generates the CRI's messages, clients and servers from its definition; needs protoc.

fn main() -> Result<(), std::io::Error> {
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        // Records that an older version wrote lack newer fields.
        .message_attribute(".", "#[serde(default)]")
        .compile_protos(&["proto/v1.proto"], &["proto/"])
}

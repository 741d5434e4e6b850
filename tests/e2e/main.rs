//! The end-to-end suite: the real binary, as an ordinary user, with the real kubectl, real registries
//! and images. `tests/e2e.sh` prepares the folder named by `ROOTLET_E2E` and runs it.

mod access;
mod apply;
mod chaos;
mod ci;
mod client;
mod cni;
mod cri;
mod cri_suite;
mod csi;
mod density;
mod describe;
mod devices;
mod documentation;
mod harness;
mod host_ports;
mod hosts;
mod hygiene;
mod ingress;
mod kustomize;
mod lifecycle;
mod living;
mod manifests;
mod manners;
mod network;
mod node;
mod packaging;
mod pods;
mod policy;
mod recovery;
mod registry;
mod scheduling;
mod store;
mod streams;
mod why;
mod workloads;

// What can be done to objects. Each is asked about before, and told of after.

const MERGE = "application/merge-patch+json";

async function act(what, work) {
	try {
		await work();
		toast(what);
	} catch (error) {
		toast(`${what.replace(/\.$/, "")}: that failed. ${error.message}`, true);
	}
}

const nameOf = (object) => `${object.kind} ${object.metadata.name}`;

function pathOf(object, kind, subresource) {
	return kind.one(object.metadata.namespace, object.metadata.name, subresource);
}

const ACTIONS = [
	{
		key: "r", label: "Restart",
		fits: (object) => ["Deployment", "StatefulSet", "DaemonSet"].includes(object.kind),
		async run(object, kind) {
			const text = "Its pods are exchanged one after the other, as its strategy says.";
			if (!(await confirmed({ title: `Restart ${nameOf(object)}?`, text, go: "Restart" }))) return;
			// What `kubectl rollout restart` sets.
			const annotations = { "kubectl.kubernetes.io/restartedAt": new Date().toISOString() };
			await act(`${nameOf(object)} restarts.`, () =>
				ask(pathOf(object, kind), { method: "PATCH", type: MERGE, body: { spec: { template: { metadata: { annotations } } } } }));
		},
	},
	{
		key: "+", label: "Scale",
		fits: (object) => ["Deployment", "StatefulSet", "ReplicaSet", "ReplicationController"].includes(object.kind),
		async run(object, kind) {
			const input = h("input", { type: "number", min: 0, step: 1, value: object.spec.replicas ?? 1, required: true });
			const fields = [h("label", null, "Replicas", input)];
			if (!(await confirmed({ title: `Scale ${nameOf(object)}`, go: "Scale", fields }))) return;
			const replicas = Number(input.value);
			await act(`${nameOf(object)} scales to ${replicas}.`, () =>
				ask(pathOf(object, kind, "scale"), { method: "PATCH", type: MERGE, body: { spec: { replicas } } }));
		},
	},
	{
		key: "c", label: (object) => (object.spec?.unschedulable ? "Uncordon" : "Cordon"),
		fits: (object) => object.kind === "Node",
		async run(object, kind) {
			const on = !object.spec?.unschedulable;
			const text = on ? "No new pods are placed on it; those there stay." : "Pods may be placed on it again.";
			if (!(await confirmed({ title: `${on ? "Cordon" : "Uncordon"} ${nameOf(object)}?`, text, go: on ? "Cordon" : "Uncordon" }))) return;
			await act(`${nameOf(object)} is ${on ? "cordoned" : "schedulable"}.`, () =>
				ask(pathOf(object, kind), { method: "PATCH", type: MERGE, body: { spec: { unschedulable: on || null } } }));
		},
	},
	{
		key: "c", label: (object) => (object.spec?.suspend ? "Resume" : "Suspend"),
		fits: (object) => object.kind === "CronJob" || object.kind === "Job",
		async run(object, kind) {
			const on = !object.spec?.suspend;
			if (!(await confirmed({ title: `${on ? "Suspend" : "Resume"} ${nameOf(object)}?`, go: on ? "Suspend" : "Resume" }))) return;
			await act(`${nameOf(object)} is ${on ? "suspended" : "resumed"}.`, () =>
				ask(pathOf(object, kind), { method: "PATCH", type: MERGE, body: { spec: { suspend: on } } }));
		},
	},
	{
		key: "r", label: "Run now",
		fits: (object) => object.kind === "CronJob",
		async run(object) {
			const { name, namespace, uid } = object.metadata;
			const job = {
				apiVersion: "batch/v1", kind: "Job", spec: object.spec.jobTemplate.spec,
				metadata: {
					generateName: `${name.slice(0, 50)}-`, labels: object.spec.jobTemplate.metadata?.labels,
					annotations: { ...object.spec.jobTemplate.metadata?.annotations, "cronjob.kubernetes.io/instantiate": "manual" },
					ownerReferences: [{ apiVersion: "batch/v1", kind: "CronJob", name, uid, controller: true }],
				},
			};
			if (!(await confirmed({ title: `Run ${nameOf(object)} now?`, text: "A Job is made from its template.", go: "Run" }))) return;
			await act(`A Job of ${nameOf(object)} starts.`, () => ask(KIND.Job.list(namespace), { method: "POST", body: job }));
		},
	},
	{
		key: "x", label: "Delete", danger: true,
		fits: () => true,
		async run(object, kind) {
			const where = object.metadata.namespace ? ` in ${object.metadata.namespace}` : "";
			const owner = object.metadata.ownerReferences?.find((reference) => reference.controller);
			const text = owner ? `It belongs to ${owner.kind} ${owner.name}, which may make another.`
				: object.kind === "Namespace" ? "Everything in it goes as well." : "What belongs to it goes as well.";
			const force = h("input", { type: "checkbox" });
			const fields = object.kind === "Pod" ? [h("label.check", null, force, "now: with one second to end")] : [];
			if (!(await confirmed({ title: `Delete ${nameOf(object)}${where}?`, text, go: "Delete", danger: true, fields }))) return;
			const options = { apiVersion: "v1", kind: "DeleteOptions", propagationPolicy: "Background", preconditions: { uid: object.metadata.uid } };
			if (force.checked) options.gracePeriodSeconds = 1;
			await act(`${nameOf(object)} is deleted.`, () => ask(pathOf(object, kind), { method: "DELETE", body: options }));
		},
	},
];

const actionsFor = (object) => ACTIONS.filter((action) => action.fits(object));
const labelOf = (action, object) => (typeof action.label === "function" ? action.label(object) : action.label);

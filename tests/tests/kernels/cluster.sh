# Runs in the virtual machine of kernels.rs.
set -e
export KUBECONFIG=/var/lib/pith/kubeconfig
[ -f /sys/fs/cgroup/cgroup.controllers ] && echo "cgroups: v2"
before=$(ls /sys/fs/cgroup /sys/fs/bpf; ip -o link | cut -d: -f2)
pith up --detach --replicas 1
pith image import /images/demo.tar --name pith
kubectl apply -f - <<END
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: pith.local/demo:v1
          resources: {limits: {memory: 32Mi, cpu: 200m}}
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 31080}]
END
kubectl rollout status deployment/web --timeout=300s
kubectl get pods,nodes -o wide
for limit in memory.max cpu.max; do
    for file in /sys/fs/cgroup/pith-pith/replica-1/pod*/[0-9a-f]*/$limit; do echo "$limit $(cat $file)"; done
done
node=$(kubectl get node replica-1 -o 'jsonpath={.status.addresses[0].address}')
for i in 1 2 3 4; do echo "answered: $(wget -q -O - http://$node:31080/ | head -n 1)"; done
# Where the verifier's work with each program stands: proc_pid_fdinfo(5), of the processes that hold them.
cat /proc/[0-9]*/fdinfo/* 2>/dev/null |
    awk '/^verified_insns:/ { programs++; if ($2 > most) most = $2 } END { print "verified:", programs, most }'
pith down
after=$(ls /sys/fs/cgroup /sys/fs/bpf; ip -o link | cut -d: -f2)
[ "$before" = "$after" ] && echo "nothing is left"
containers

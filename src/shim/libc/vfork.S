/* vfork.S - vfork(), which has to tell our other functions that its child runs in the parent's memory.
 *
 * The child shares our descriptor table (memory) but not our descriptors (kernel), so what it closes or
 * duplicates must not be noted: interpose_fd.cc asks mw_in_vfork. The flag is the calling thread's own; it is
 * set until the parent goes on, which is when the child has ended or become another program; then it has
 * copies of our descriptors, which mw_descriptor_copies counts; mw_copying says that it has them already.
 * The return address has to be kept in a register: the child reuses this stack frame. */
	.text
	.globl	vfork
	.type	vfork, @function
vfork:
	.cfi_startproc
	endbr64
	movq	mw_in_vfork@gottpoff(%rip), %rdx
	popq	%rdi
	.cfi_adjust_cfa_offset -8
	movl	$1, %fs:(%rdx)
	lock incl	mw_copying(%rip)
	movl	$58, %eax		/* SYS_vfork; clobbers rcx and r11 only */
	syscall
	pushq	%rdi
	.cfi_adjust_cfa_offset 8
	testq	%rax, %rax
	je	1f			/* the child */
	movl	$0, %fs:(%rdx)
	lock incl	mw_descriptor_copies(%rip)
	lock decl	mw_copying(%rip)
	cmpq	$-4095, %rax
	jae	2f
1:	ret
2:	negl	%eax
	movl	%eax, %edi
	subq	$8, %rsp
	.cfi_adjust_cfa_offset 8
	call	mw_set_errno
	addq	$8, %rsp
	.cfi_adjust_cfa_offset -8
	movq	$-1, %rax
	ret
	.cfi_endproc
	.size	vfork, .-vfork
	.section .note.GNU-stack, "", @progbits
